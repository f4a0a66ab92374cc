"""`llmint8 inspect`: what a checkpoint holds, from its headers alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from llmint8.cli.options import JsonOption, examples
from llmint8.cli.output import print_json, stdout

if TYPE_CHECKING:
    from llmint8.checkpoint import CheckpointSummary

NAME = "inspect"
EPILOG = examples(
    "llmint8 inspect ./my-model-int8", "llmint8 inspect ./my-model-int8/model.safetensors --json"
)


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A model folder or one .safetensors file.", show_default=False
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Show the tensors of a checkpoint and check that every int8 layer has its scales; no weight is read."""
    from llmint8.checkpoint import inspect_checkpoint

    summary = inspect_checkpoint(checkpoint)
    print_json(_as_json(summary)) if json else _show(summary)


def _as_json(summary: CheckpointSummary) -> dict[str, Any]:
    layers = summary.int8_layers | summary.int8_experts
    low = [summary.tensors[f"{name}.weight_low"] for name in summary.int16_columns]
    return {
        "path": str(summary.path),
        "quantization": summary.quantization,
        "bytes": summary.nbytes,
        "int8_bytes": sum(t.nbytes for t in (*layers.values(), *low)),
        "int8_layers": {name: list(t.shape) for name, t in layers.items()},
        "int16_columns": summary.int16_columns,
        "tensors": {name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in summary.tensors.items()},
    }


def _show(summary: CheckpointSummary) -> None:
    from llmint8.convert import human_bytes

    table = Table(title=escape(str(summary.path)), title_justify="left")
    table.add_column("tensor or int8 layer", overflow="fold")  # a name that is cut off names nothing
    for heading in ("type", "shape"):
        table.add_column(heading, no_wrap=True)
    columns = ["int16\ncolumns"] if summary.int16_columns else []
    for heading in ("count", *columns, "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (name, dtype, shape), (count, int16, size) in _groups(summary).items():
        numbers = [str(int16 or "")] if summary.int16_columns else []
        numbers = [str(count), *numbers, human_bytes(size)]
        table.add_row(name, dtype, shape, *numbers, style="bold" if dtype == "int8" else "")
    table.add_section()
    numbers = [str(sum(summary.int16_columns.values()))] if summary.int16_columns else []
    numbers = [str(len(summary.tensors)), *numbers, human_bytes(summary.nbytes)]
    table.add_row("all tensors", "", "", *numbers)
    settings = {key: value for key, value in (summary.quantization or {}).items() if value is not None}
    described = ", ".join(f"{key} {value}" for key, value in settings.items()) or "none"
    console = stdout()
    console.print(table)
    console.print(
        f"{len(summary.int8_layers | summary.int8_experts)} int8 layers; quantization_config: {described}",
        soft_wrap=True,
        markup=False,
    )


def _groups(summary: CheckpointSummary) -> dict[tuple[str, str, str], tuple[int, int, int]]:
    """(name, type, shape) to (count, columns with 16-bit weights, bytes); an int8 layer and its scales are
    one, as are repeated layers."""
    layers = summary.int8_layers | summary.int8_experts
    groups: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for name, tensor in summary.tensors.items():
        owner, _, part = name.rpartition(".")
        experts = name.removesuffix("_SCB")
        if experts in summary.int8_experts:
            owner, part = experts, "weight" if experts == name else "SCB"
        layer = layers.get(owner)
        shape = " × ".join(map(str, (layer or tensor).shape))
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name if layer is None else owner)
        key = (pattern, tensor.dtype if layer is None else "int8", shape)
        count, columns, size = groups.get(key, (0, 0, 0))
        whole = layer is None or part == "weight"
        columns += summary.int16_columns.get(owner, 0) if whole and layer is not None else 0
        groups[key] = (count + whole, columns, size + tensor.nbytes)
    return groups
