"""The tables of the HTML report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from llmint8.analysis.outlier_report.model import ModelOutliers, number, parameters, percent

_HEAD = (
    "largest",
    "after the first position",
    "outlier columns",
    "outlier elements",
    "positions with one",
)


def comparison(models: Sequence[ModelOutliers]) -> str:
    """A row for each model."""
    rows = (
        (
            escape(model.label),
            parameters(model.parameters),
            number(model.perplexity),
            str(len(model.report.shared)),
            percent(model.layers_share),
            percent(model.positions_share),
            number(model.largest),
        )
        for model in models
    )
    head = ("model", "parameters", "perplexity", "shared dimensions", "layers", "positions", "largest")
    return _table(head, rows)


def inputs(model: ModelOutliers) -> str:
    """A row for each input."""
    rows = []
    for group in model.report.groups:
        later = [m.largest_later for m in group.members if m.largest_later is not None]
        worst = model.block_label(group.worst.block)
        rows.append(
            (
                escape(group.name),
                number(group.largest.largest),
                number(max(later)) if later else "",
                f"{percent(group.mean('columns_share'))}, worst {percent(group.worst.columns_share)}"
                + (f" in layer {escape(worst)}" if worst and group.worst.columns else ""),
                percent(group.mean("elements_share")),
                percent(group.mean("affected_share")),
            )
        )
    return _table(("input of", *_HEAD), rows)


def dimensions(model: ModelOutliers, count: int) -> str:
    """The dimensions that are spread furthest, at most `count`."""
    rows = (
        (
            str(d.index) + (" (shared)" if d.shared else ""),
            percent(d.layers),
            percent(d.positions),
            number(d.largest),
        )
        for d in model.report.dimensions[:count]
    )
    return _table(("dimension", "layers", "positions", "largest"), rows)


def layers(model: ModelOutliers) -> str:
    """A row for each layer, folded."""
    rows = (
        (
            escape(layer.name),
            f"{number(layer.largest)} at {layer.largest_dimension}, position {layer.largest_position}",
            "" if layer.largest_later is None else number(layer.largest_later),
            f"{layer.columns:,} of {layer.features:,}, {percent(layer.columns_share)}",
            percent(layer.elements_share),
            percent(layer.affected_share),
        )
        for layer in model.report.layers
    )
    table = _table(("layer", *_HEAD), rows)
    return f"<details><summary>All {len(model.report.layers)} layers</summary>{table}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
