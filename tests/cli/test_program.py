"""The program as a whole: version, help, exit codes, and what it imports."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

COMMANDS = ["demo", "generate", "quantize", "finetune", "eval", "outliers", "inspect", "doctor", "bench"]


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The installed entry point, in a process of its own."""
    code = "from llmint8.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_version(run):
    assert run("--version", code=0).stdout == f"llmint8 {version('llmint8')}\n"


def test_help_lists_the_commands(run):
    shown = run("--help", code=0).stdout
    assert [name for name in COMMANDS if f" {name} " not in shown] == []


def test_without_a_command_it_shows_the_help_and_fails(run):
    outcome = run(code=2)
    assert "quantize" in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_ends_with_examples_one_a_line(run, command):
    lines = [line.strip() for line in run(command, "--help", code=0).stdout.splitlines()]
    examples = lines[lines.index("Examples") + 1 :]
    assert all(line == "" or f"llmint8 {command}" in line for line in examples)
    assert any(line.startswith(f"llmint8 {command}") for line in examples)
    assert all(line.count("llmint8 ") <= 1 for line in examples)


def test_help_paragraphs_fill_their_lines(run):
    """No line end of the source survives: the next word would not have fitted."""
    lines = run("eval", "--help", code=0).stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "The text is cut" in line)
    paragraph = lines[start : next(i for i in range(start, len(lines)) if not lines[i].strip())]
    assert len(paragraph) > 1
    for line, following in itertools.pairwise(paragraph):
        assert len(line.strip()) + 1 + len(following.split()[0]) > 98


def test_commands_are_not_paid_for_before_they_run():
    code = "import sys, llmint8.cli; print(sorted({'transformers', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_command_is_wrong_usage(run):
    assert "frobnicate" in run("frobnicate", code=2).stderr


def test_an_error_is_one_line_without_a_traceback_and_code_1(tmp_path):
    done = program("generate", tmp_path / "none", "hello")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'none'} does not exist; ")
    assert done.stderr.count("\n") == 1


def test_the_entry_point_is_installed():
    (script,) = entry_points(group="console_scripts", name="llmint8")
    assert script.value == "llmint8.cli:main"


def test_a_real_process_prints_json_alone(int8_model):
    done = program("inspect", int8_model, "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["quantization"]["quant_method"] == "llmint8"
