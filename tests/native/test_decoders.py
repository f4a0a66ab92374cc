"""The decoder test in C++, which CPUs without torch rely on, agrees here, and would say if it did not."""

import shutil
import subprocess
from pathlib import Path

import pytest

from llmint8.backends.library import find_library
from llmint8.backends.native import Native
from native.write_decoders import write_decoders

ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

pytestmark = pytest.mark.skipif(
    COMPILER is None or find_library() is None, reason="needs a C++ compiler and the library built with it"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """decoders.cpp, linked to the installed library."""
    path, library = tmp_path_factory.mktemp("native") / "decoders", find_library()
    source = Path(__file__).with_name("decoders.cpp")
    include, rpath = ROOT / "csrc" / "include", f"-Wl,-rpath,{library.parent}"
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", f"-I{include}", source, library, rpath, "-o", path], check=True
    )
    return path


@pytest.fixture(scope="module")
def cases(program: Path) -> Path:
    path = program.with_name("cases")
    write_decoders(path, 20)
    return path


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_instruction_set_of_this_cpu(program: Path, cases: Path) -> None:
    isas = [isa for isa, had in Native().isas.items() if had]
    done = run(program, cases, *isas)
    assert done.returncode == 0, done.stderr
    for isa in isas:
        assert f"{isa}: 20 decoders with the reference's bits" in done.stdout


def test_one_wrong_bit_is_found(program: Path, cases: Path, tmp_path: Path) -> None:
    content = bytearray(cases.read_bytes())
    content[-1] ^= 1  # of the last decoder's result
    wrong = tmp_path / "wrong"
    wrong.write_bytes(content)
    done = run(program, wrong, "scalar")
    assert done.returncode == 1
    assert "of decoder 19 differ" in done.stderr


def test_an_instruction_set_that_is_not_there(program: Path, cases: Path) -> None:
    done = run(program, cases, "mmx")
    assert done.returncode == 1
    assert "has no mmx" in done.stderr
