"""The program: its commands, and the border where errors become one line and an exit code.

Exit codes: 0 done, 1 an error that stderr names, 2 wrong usage, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import importlib.metadata
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmint8.cli import (
    bench,
    compare,
    demo,
    doctor,
    evaluate,
    finetune,
    generate,
    inspect,
    outliers,
    quantize,
)
from llmint8.cli.output import say_error, say_warning
from llmint8.errors import LLMInt8Error


class _ErrorBorder(TyperGroup):
    """Ends a command that failed with one line on stderr; a traceback is for errors of this program alone."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = say_warning
            try:
                return super().invoke(ctx)
            except LLMInt8Error as error:
                say_error(str(error))
            except KeyboardInterrupt:
                say_error("interrupted; no result was left half written")
                raise typer.Exit(130) from None
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise  # typer ends quietly when a pager or `head` closes the pipe
                say_error(str(error))
        raise typer.Exit(1)


def _unwrapped(docstring: str) -> str:
    """Paragraphs without the line ends of the source, for a terminal of any width."""
    return "\n\n".join(" ".join(part.split()) for part in docstring.split("\n\n"))


app = typer.Typer(
    name="llmint8",
    cls=_ErrorBorder,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (demo, generate, quantize, finetune, evaluate, compare, outliers, inspect, doctor, bench):
    app.command(_command.NAME, help=_unwrapped(_command.command.__doc__ or ""), epilog=_command.EPILOG)(
        _command.command
    )


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmint8 {importlib.metadata.version('llmint8')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """LLM.int8() for transformer models: int8 weights and activations, outliers kept at 16 bits."""


def _terminated(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
    sys.exit(128 + signum)


def main() -> None:
    """Run the command line; never returns."""
    # A terminated command unwinds like an interrupted one, so that a half-written folder is removed.
    signal.signal(signal.SIGTERM, _terminated)
    app()
