"""What `llmint8 compare` says: JSON, a table, and remarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from llmint8.cli.output import print_json, stdout

if TYPE_CHECKING:
    from llmint8.analysis.inject import Injection
    from llmint8.analysis.schemes import Comparison

#: Columns of a table that is printed into a file or a pipe.
_WIDTH = 120


def describe_injection(injection: Injection) -> dict[str, Any]:
    """What was scaled, as JSON types."""
    return {
        "columns": list(injection.columns),
        "factor": injection.factor,
        "norms": len(injection.norms),
        "left": injection.left,
    }


def show(about: dict[str, Any], results: list[Comparison], as_json: bool, every: bool) -> None:
    """Print a comparison. about: what was compared, as JSON types. every: also a table of all layers for
    each scheme that keeps some values at 16 bits; JSON holds the layers anyway."""
    if as_json:
        print_json(about | {"schemes": [_row(result) for result in results]})
        return
    console = stdout()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(_table(about, results))
    for result in results if every else ():
        if 0 < result.kept_values < 1:
            console.print(_layers(result))
    for line in _remarks(about, results):
        console.print(line, highlight=False, markup=False)


def _row(result: Comparison) -> dict[str, Any]:
    scheme, score = result.scheme, result.score
    return {
        "name": scheme.name,
        "title": scheme.title,
        "source": scheme.source,
        "fault": scheme.fault,
        "perplexity": score.perplexity,
        "kl": score.kl,
        "top1_agreement": score.top1,
        "kept_values": result.kept_values,
        "kept_columns": result.kept_columns,
        "weight_bytes": result.weight_bytes,
        "crowded_layers": result.crowded(),
        "layers": {
            name: {
                "kept_values": usage.kept_values / usage.values,
                "kept_columns": usage.kept_columns / usage.columns,
            }
            for name, usage in result.usage.items()
        },
    }


def _table(about: dict[str, Any], results: list[Comparison]) -> Table:
    from llmint8.convert import human_bytes

    title = f"{about['model']} on {about['text']}"
    if about["inject"]:
        title += f", {len(about['inject']['columns'])} columns × {about['inject']['factor']}"
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("scheme", no_wrap=True)
    for heading in ("perplexity", "KL", "same first\nchoice", "16-bit\nvalues", "in columns", "weights"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        score = result.score
        table.add_row(
            result.scheme.title,
            f"{score.perplexity:,.3f}",
            f"{score.kl:.5f}",
            f"{score.top1:.2%}",
            _percent(result.kept_values),
            _percent(result.kept_columns),
            human_bytes(result.weight_bytes),
        )
    return table


def _layers(result: Comparison) -> Table:
    title = f"Every layer, {result.scheme.title}"
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for heading in ("16-bit\nvalues", "in columns"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, usage in result.usage.items():
        shares = usage.kept_values / usage.values, usage.kept_columns / usage.columns
        table.add_row(escape(name), *map(_percent, shares))
    return table


def _percent(share: float) -> str:
    return "all" if share == 1 else "none" if share == 0 else f"{share:.2%}"


def _remarks(about: dict[str, Any], results: list[Comparison]) -> list[str]:
    """What the numbers mean, what was injected, and where most columns are outliers."""
    lines = [
        f"{about['tokens']:,} tokens in windows of {about['context']}, {about['scored']:,} scored. KL: to "
        "the float32 model, nats. "
        f"Weights: those of the {about['layers']} layers. 16-bit values: activations that are not reduced to "
        "8 bits; in columns: columns of a window that hold one."
    ]
    if about["inject"]:
        injected = about["inject"]
        columns = ", ".join(map(str, injected["columns"]))
        lines.append(
            f"Injected: columns {columns} of {injected['norms']} norms, times {injected['factor']}, and "
            "divided out of the layers that read them."
        )
    for result in results:
        crowded = list(result.crowded().items())
        if crowded:
            shown = ", ".join(f"{name} ({share:.0%})" for name, share in crowded[:3])
            more = f" and {len(crowded) - 3} more" if len(crowded) > 3 else ""
            lines.append(f"{result.scheme.title}: most columns hold outliers in {shown}{more}.")
    return lines
