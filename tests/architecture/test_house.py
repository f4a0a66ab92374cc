"""Rules of the house that no linter knows: layers, a lean import, sizes, and one home for each constant."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmint8 import numerics

ROOT = Path(__file__).parents[2]
BUDGETS = {".py": 300, ".cpp": 250, ".h": 250}
FOLDERS = ("src", "csrc", "tests", "benchmarks", "docs", ".ci")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix in {*BUDGETS, ".md", ""} and "__pycache__" not in path.parts
)
MODULES = sorted((ROOT / "src" / "llmint8").rglob("*.py"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def python(program: str) -> str:
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_rules_have_something_to_look_at() -> None:
    assert len(MODULES) > 20
    assert {path.suffix for path in SOURCES} >= set(BUDGETS)


def test_imports_point_down_only() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed (pip install 'llmint8[lint]')")
    program = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


def test_importing_llmint8_loads_no_framework_but_torch() -> None:
    heavy = ("transformers", "triton", "accelerate", "typer", "gguf", "bitsandbytes", "llmint8.cli")
    program = f"import sys, llmint8; print(*(name for name in {heavy} if name in sys.modules))"
    assert python(program) == ""


def test_importing_llmint8_loads_little_beyond_torch() -> None:
    """Counted in modules, since seconds depend on the machine."""
    program = "import sys, torch, numpy; n = len(sys.modules); import llmint8; print(len(sys.modules) - n)"
    assert int(python(program)) < 300


def test_importing_llmint8_uses_no_device_and_no_network() -> None:
    program = (
        "import sys, torch\n"
        "def fail(*a, **k): raise SystemExit('touched a device')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = fail\n"
        "events = []\n"
        "sys.addaudithook(lambda event, _: events.append(event) if event.startswith('socket.') else None)\n"
        "import llmint8\n"
        "print(*events)\n"
    )
    assert python(program) == ""


def test_configuration_is_free_of_torch() -> None:
    """`llmint8.config` can be read without the package's own `__init__`, by a tool that has no torch."""
    program = (
        "import sys, types\n"
        f"package = types.ModuleType('llmint8'); package.__path__ = [{str(ROOT / 'src' / 'llmint8')!r}]\n"
        "sys.modules['llmint8'] = package\n"
        "import llmint8.config\n"
        "print('torch' in sys.modules)\n"
    )
    assert python(program) == "False"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in BUDGETS], ids=relative)
def test_files_stay_within_their_budget(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= BUDGETS[path.suffix]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_left_for_later(path: Path) -> None:
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X:")
    assert not [word for word in words if word in path.read_text(encoding="utf-8")]


def numbers(path: Path) -> set[float]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, (int, float)) and not isinstance(value, bool)}


@pytest.mark.parametrize("path", [m for m in MODULES if m.name != "numerics.py"], ids=relative)
def test_constants_of_the_contract_have_one_home(path: Path) -> None:
    values = {v for name, v in vars(numerics).items() if name.isupper() and isinstance(v, (int, float))}
    elsewhere_too = {0, -1.0, 8, numerics.LANES, numerics.MIN_8BIT_SIZE, numerics.DEFAULT_THRESHOLD}
    elsewhere_too |= {numerics.OUTLIER_COLUMN_SHARE, numerics.FOURBIT_BLOCK, numerics.PAIR_BLOCK}
    distinctive = values - elsewhere_too
    assert {127, 256, 32512, 32767, 131_072, 2.0**-100} <= distinctive
    sizes_of_blocks = (
        {numerics.DIGIT_BASE} if path.parent.name == "triton" and path.name == "tiles.py" else set()
    )
    assert not numbers(path) & distinctive - sizes_of_blocks


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_users_meet_no_assert_and_no_swallowed_exception(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    handlers = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    swallowed = [h.lineno for h in handlers if all(isinstance(s, (ast.Pass, ast.Continue)) for s in h.body)]
    assert not swallowed


def test_every_public_name_exists() -> None:
    import llmint8

    assert sorted(llmint8.__all__) == sorted(set(llmint8.__all__))
    assert not [name for name in llmint8.__all__ if not hasattr(llmint8, name)]


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_no_file_that_git_tracks_is_large() -> None:
    listed = run("git", "ls-files", "-z")
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert not [relative(f) for f in files if f.is_file() and f.stat().st_size > 200_000]
