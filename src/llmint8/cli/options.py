"""Arguments and options that several commands take."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer
from rich.markup import escape

from llmint8.errors import ConfigError


class Dtype(str, Enum):
    """Type of the tensors that stay floats, and of the activations between layers."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _parse_threshold(text: str) -> Any:
    from llmint8.config import check_threshold

    try:
        return check_threshold(text if text.isalpha() and text not in ("nan", "inf") else float(text))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    except ValueError as error:
        raise typer.BadParameter(f'a threshold is a number >= 0 or "auto", got {text!r}') from error


def _parse_module_threshold(text: str) -> Any:
    pattern, sign, threshold = text.partition("=")
    if not (pattern and sign):
        raise typer.BadParameter(f"give PATTERN=THRESHOLD, such as down_proj=auto, got {text!r}")
    return pattern, _parse_threshold(threshold)


def examples(*lines: str) -> str:
    """The end of a help page: lines, shown as they are."""
    return "\n".join(["[bold]Examples[/bold]", *(f"  {escape(line)}" for line in lines)])


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help='A local model folder, float or int8, or "smollm2", the small model of the demo.',
        show_default=False,
    ),
]
ThresholdOption = Annotated[
    Any,
    typer.Option(
        parser=_parse_threshold,
        metavar="NUMBER|auto",
        help="Activations from this magnitude on keep 16 bits; 0: none; auto: eight times the row's mean.",
        show_default="6.0; an int8 model: as saved",
    ),
]
ModuleThresholdOption = Annotated[
    list[Any] | None,
    typer.Option(
        "--module-threshold",
        parser=_parse_module_threshold,
        metavar="NAME=VALUE",
        help="The threshold of some layers, such as down_proj=auto; names as for --skip; may be repeated.",
        show_default="none; an int8 model: as saved",
    ),
]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Type of everything that stays float; auto: as stored.", case_sensitive=False)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")
]
