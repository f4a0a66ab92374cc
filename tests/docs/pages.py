"""The examples of the README, of docs/ and of the help pages, as data."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from llmint8.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"\w+=\S*")


@dataclass(frozen=True)
class Shell:
    """A line for a shell. assignments: what stands before the program, as LLMINT8_ISA=avx2."""

    line: str
    assignments: tuple[str, ...]
    words: tuple[str, ...]


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Each block of Python with the lines that stand above it."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)), m[2]) for m in _BLOCK.finditer(text) if m[1] == "python"]


def shell_lines() -> list[Shell]:
    """Every command in a block of a page (marked bash, sh or not at all) and in the examples of the help."""
    blocks = [
        m[2] for page in PAGES for m in _BLOCK.finditer(page.read_text(encoding="utf-8")) if _is_shell(m[1])
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    epilogs = (command.epilog or "" for command in app.registered_commands)
    lines += [line.replace("\\[", "[") for epilog in epilogs for line in epilog.splitlines()[1:]]
    commands = (_parsed(line.strip()) for line in lines)
    return [command for command in commands if command.words]


def _is_shell(language: str) -> bool:
    return language in ("", "bash", "sh", "shell", "console")


def _parsed(line: str) -> Shell:
    """Redirections and pipes end a command here: what follows them is the shell's."""
    words = []
    for word in shlex.split(line.removeprefix("$ "), comments=True):
        if word in (">", ">>", "|", "<", "&&", "2>"):
            break
        words.append(word)
    count = 0
    while count < len(words) and _ASSIGNMENT.fullmatch(words[count]):
        count += 1
    return Shell(line, tuple(words[:count]), tuple(words[count:]))
