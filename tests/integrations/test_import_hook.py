"""Acting after an import, and what of it users meet: adapters work whichever library is imported first."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest

from llmint8.integrations import hooks
from llmint8.integrations.import_hook import replace_function, run_after_import

KNOWN = (
    "import torch, peft\n"
    "from peft.tuners.lora.model import LoraModel\n"
    "assert LoraModel._create_new_module.__module__ == 'llmint8.integrations.peft'\n"
    "assert prepare_model_for_kbit_training.__wrapped__.__module__ == 'peft.utils.other'\n"
    "assert peft.prepare_model_for_kbit_training is prepare_model_for_kbit_training\n"
    "from accelerate import big_modeling, load_checkpoint_in_model\n"
    "assert load_checkpoint_in_model.__wrapped__\n"
    "assert big_modeling.load_checkpoint_in_model is load_checkpoint_in_model\n"
)
PREPARE = "from peft import prepare_model_for_kbit_training\n"
LAZY = (
    "import sys, llmint8\n"
    "loaded = {'transformers', 'accelerate', 'peft', 'matplotlib', 'bitsandbytes'} & set(sys.modules)\n"
    "assert not loaded, loaded\n"
)
PROGRAMS = {
    "llmint8 first": (
        LAZY
        + "import importlib.util\nassert importlib.util.find_spec('peft')\n"  # to ask is not to import
        + PREPARE
        + KNOWN
    ),
    "the others first": PREPARE + "import llmint8\n" + KNOWN,
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_programs(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_peft_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llmint8.integrations.peft", raising=False)
    monkeypatch.setitem(sys.modules, "peft", types.ModuleType("peft"))
    with pytest.warns(UserWarning, match="does not know this version of peft"):
        hooks._register("peft")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported and is not."""
    (tmp_path / "imported_later.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_later", raising=False)
    return "imported_later"


def test_the_action_runs_once_after_the_first_import(module: str) -> None:
    seen: list[bool] = []
    before = list(sys.meta_path)
    run_after_import(module, lambda: seen.append(hasattr(sys.modules[module], "f")))
    assert importlib.util.find_spec(module) is not None
    assert importlib.util.find_spec(module) is not None
    assert seen == []
    loaded = importlib.import_module(module)
    assert seen == [True]
    assert sys.meta_path == before
    importlib.reload(loaded)
    assert seen == [True]
    assert inspect.getsource(loaded.f) == "def f():\n    return 1\n"


def test_the_action_runs_at_once_for_what_is_loaded(module: str) -> None:
    importlib.import_module(module)
    seen: list[int] = []
    before = list(sys.meta_path)
    run_after_import(module, lambda: seen.append(1))
    assert seen == [1]
    assert sys.meta_path == before


def test_a_module_that_does_not_exist_stays_missing() -> None:
    before = list(sys.meta_path)
    run_after_import("no_such_module_anywhere", lambda: None)
    try:
        assert importlib.util.find_spec("no_such_module_anywhere") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_module_anywhere")
    finally:
        sys.meta_path[:] = before


def test_a_function_is_replaced_where_it_was_imported_to(module: str) -> None:
    loaded = importlib.import_module(module)
    original = loaded.f
    replace_function(original, lambda: 2)
    assert loaded.f() == 2
    assert original() == 1
