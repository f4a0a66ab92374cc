"""Tiny models on disk, and the program as a function."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from typer.testing import CliRunner

from llmint8.cli.app import app
from tiny import save_tiny_checkpoint


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line of an error; fails for a traceback, or for a result beside the error."""
        assert self.code == 1
        assert self.stdout == ""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        assert self.stderr.endswith(lines[0] + "\n")
        return lines[0].removeprefix("error: ")


@pytest.fixture
def run() -> Iterator[Callable[..., Outcome]]:
    """Run a command in this process; an exception that escapes the program fails the test."""
    level = transformers.logging.get_verbosity()

    def call(*arguments: object, code: int | None = None) -> Outcome:
        result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        outcome = Outcome(result.exit_code, result.stdout, result.stderr)
        assert code is None or outcome.code == code, outcome
        return outcome

    yield call
    transformers.logging.set_verbosity(level)


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 Llama of two layers with its tokenizer. Read it only."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("float") / "model")


@pytest.fixture(scope="session")
def int8_model(float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, converted by the program with threshold 6.0. Read it only."""
    out = tmp_path_factory.mktemp("int8") / "model"
    result = CliRunner().invoke(app, ["quantize", str(float_model), str(out)])
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Copy a model folder and change its config.json; None removes a field."""

    def edit(source: Path, **changes: Any) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(source, folder)
        file = folder / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return folder

    return edit


@pytest.fixture
def retensored(tmp_path: Path) -> Callable[..., Path]:
    """Copy a model folder and change its tensors in a function that gets them by name."""
    from safetensors.torch import load_file, save_file

    def change(source: Path, function: Callable[[dict[str, Any]], Any]) -> Path:
        folder = tmp_path / "retensored"
        shutil.copytree(source, folder)
        tensors = load_file(folder / "model.safetensors")
        function(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change
