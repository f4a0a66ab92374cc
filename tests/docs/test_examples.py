"""Every example of the README, of docs/ and of the help pages does what it says, without bitsandbytes.

A reader has a model in `my-model`; so have these tests. The blocks of one page run in order and share names.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
import typer
from transformers.quantizers import auto
from typer.testing import CliRunner

import tiny
from docs.pages import PAGES, ROOT, Shell, python_blocks, shell_lines
from llmint8 import Int8Config
from llmint8.cli.app import app

SHELL = shell_lines()
#: Cheap enough to run with a tiny model; `demo` and `bench` have tests of their own.
CHEAP = ("compare", "doctor", "eval", "generate", "inspect", "outliers", "quantize")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples assume: a float model, the int8 one made from it, a text."""
    folder = tmp_path_factory.mktemp("reader")
    tiny.save_tiny_checkpoint(folder / "my-model")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "my-model", quantization_config=Int8Config()
    )
    model.save_pretrained(folder / "my-model-int8")
    tiny.tiny_tokenizer().save_pretrained(folder / "my-model-int8")
    (folder / "book.txt").write_text("It was a bright cold day. " * 40)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it to work in. What an example changes for the whole process is changed back."""
    shutil.copytree(models, tmp_path / "reader")
    monkeypatch.chdir(tmp_path / "reader")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    quantizers, verbosity = dict(auto.AUTO_QUANTIZER_MAPPING), transformers.logging.get_verbosity()
    random = torch.get_rng_state()
    yield tmp_path / "reader"
    auto.AUTO_QUANTIZER_MAPPING.update(quantizers)
    transformers.logging.set_verbosity(verbosity)
    torch.set_rng_state(random)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_python(folder: Path, page: Path) -> None:
    shutil.rmtree(folder / "my-model-int8")  # the examples make it
    names: dict[str, object] = {"__name__": "__main__"}
    for line, source in python_blocks(page):
        # Empty lines above, so that a traceback shows the line of the page.
        exec(compile("\n" * line + source, str(page), "exec"), names)


@pytest.mark.parametrize("shell", SHELL, ids=lambda s: s.line)
def test_shell_lines_parse(folder: Path, shell: Shell) -> None:
    """Programs, targets, files and options exist; nothing runs."""
    program, *arguments = shell.words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "python" and arguments[0].endswith(".py") and "/" in arguments[0]:
        assert (ROOT / arguments[0]).is_file()
    elif program == "llmint8":
        commands = typer.main.get_command(app).commands
        if arguments and arguments[0].startswith("-"):
            assert set(arguments) <= {"--help", "-h", "--version"}
        elif "--help" not in arguments:
            assert arguments[0] in commands
            commands[arguments[0]].make_context(arguments[0], arguments[1:])


RUNNABLE = [
    shell
    for shell in SHELL
    if shell.words[0] == "llmint8"
    and shell.words[1] in CHEAP
    and "smollm2" not in shell.words
    and not shell.assignments  # kernels are chosen once in a process
]


@pytest.mark.parametrize("shell", RUNNABLE, ids=lambda s: s.line)
def test_shell_lines_run(folder: Path, shell: Shell) -> None:
    if shell.words[1] == "quantize":
        shutil.rmtree(folder / "my-model-int8")
    result = CliRunner().invoke(app, list(shell.words[1:]), env={"COLUMNS": "100"})
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)


def test_there_are_examples() -> None:
    assert {"README.md", "bitsandbytes.md"} <= {p.name for p in PAGES if python_blocks(p)}
    assert {shell.words[0] for shell in SHELL} >= {"make", "pip", "llmint8"}
    assert {shell.words[1] for shell in RUNNABLE} == set(CHEAP)
