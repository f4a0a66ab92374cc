"""What the commands print, and where: results on stdout, everything about the work on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def stdout() -> Console:
    """The console for results."""
    return Console()


def stderr() -> Console:
    """The console for progress and remarks."""
    return Console(file=sys.stderr, highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """The result for a program to read; the only thing on stdout then."""
    typer.echo(json.dumps(value, indent=2))


def say_error(message: str) -> None:
    """One line, whatever the message holds: a program may cut it out of a log."""
    typer.secho("error: " + " ".join(message.split()), fg=typer.colors.RED, err=True)


def note(message: str) -> None:
    """A remark on the work that is no result."""
    typer.secho("note: " + " ".join(message.split()), fg=typer.colors.YELLOW, err=True)


def say_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - the signature of warnings.showwarning
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """A Python warning without the line of source code that raised it."""
    note(str(message))


@contextmanager
def working(message: str) -> Iterator[None]:
    """Say what is being done: a spinner on a terminal, otherwise a line."""
    console = stderr()
    if console.is_terminal:
        with console.status(escape(message)):
            yield
    else:
        typer.echo(message, err=True)
        yield


@contextmanager
def progress(message: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, moved by calling what is yielded with (done, total); off a terminal, one line."""
    console = stderr()
    if not console.is_terminal:
        typer.echo(message, err=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(message, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
