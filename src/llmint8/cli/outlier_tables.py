"""The tables of `llmint8 outliers`."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.markup import escape
from rich.table import Table

from llmint8.analysis.outlier_report import ModelOutliers, number, parameters, percent
from llmint8.cli.output import stdout

#: Columns of a table that is printed into a file or a pipe.
_WIDTH = 120


def show(models: list[ModelOutliers], every: bool) -> None:
    """Print what was found; every: also a table of all layers."""
    console = stdout()
    if not console.is_terminal:
        console.width = _WIDTH
    for model in models:
        console.print(_inputs(model))
        if every:
            console.print(_layers(model))
        for line in (*_criterion(model), *_mostly(model)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print()
    if len(models) > 1:
        console.print(_comparison(models))


def _inputs(model: ModelOutliers) -> Table:
    title = f"{model.name}: {parameters(model.parameters)} parameters, {len(model.report.blocks)} layers"
    table = _table(title, "input of", "largest\nmagnitude", "after first\nposition")
    for column in (
        "outlier columns\nmean",
        "\nrange",
        "worst\nlayer",
        "outlier\nelements",
        "positions\nwith one",
    ):
        table.add_column(column, justify="right")
    for group in model.report.groups:
        later = [m.largest_later for m in group.members if m.largest_later is not None]
        shares = [m.columns_share for m in group.members]
        table.add_row(
            escape(group.name),
            number(group.largest.largest),
            number(max(later)) if later else "",
            percent(group.mean("columns_share")),
            f"{percent(min(shares))} to {percent(max(shares))}",
            escape(model.block_label(group.worst.block)) if group.worst.columns else "",
            percent(group.mean("elements_share")),
            percent(group.mean("affected_share")),
        )
    return table


def _layers(model: ModelOutliers) -> Table:
    table = _table("Every layer", "layer", "largest\nmagnitude", "dimension", "position")
    for column in ("outlier columns\nof all", "\nshare", "outlier\nelements", "positions\nwith one"):
        table.add_column(column, justify="right")
    for layer in model.report.layers:
        table.add_row(
            escape(layer.name),
            number(layer.largest),
            str(layer.largest_dimension),
            str(layer.largest_position),
            f"{layer.columns:,} of {layer.features:,}",
            percent(layer.columns_share),
            percent(layer.elements_share),
            percent(layer.affected_share),
        )
    return table


def _criterion(model: ModelOutliers) -> Iterable[str]:
    report = model.report
    if report.hidden_size is None:
        yield "No layer reads the output of a norm, so the paper's criterion cannot be applied."
        return
    rule = f"|x| >= {report.threshold:g} in 25 % of the layers and 6 % of the positions"
    yield f"Shared dimensions of {report.hidden_size:,} in the hidden state, {rule}: {len(report.shared)}"
    shown = report.shared or report.dimensions[:1]
    for d in shown:
        yield (
            f"  {'' if d.shared else 'the most common: '}dimension {d.index}: {percent(d.layers)} "
            f"of the layers, {percent(d.positions)} of the positions, largest {number(d.largest)}"
        )


def _mostly(model: ModelOutliers) -> Iterable[str]:
    for projection, blocks in model.mostly_outliers.items():
        yield f"Most columns are outliers: {projection}" + (f" of layer {blocks}" if blocks else "")


def _comparison(models: list[ModelOutliers]) -> Table:
    table = _table("The most common outlier dimension of each model", "model", "parameters", "perplexity")
    for column in ("shared\ndimensions", "layers", "positions", "largest\nmagnitude"):
        table.add_column(column, justify="right")
    for model in models:
        table.add_row(
            escape(model.label),
            parameters(model.parameters),
            f"{model.perplexity:.2f}",
            str(len(model.report.shared)),
            percent(model.layers_share),
            percent(model.positions_share),
            number(model.largest),
        )
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=escape(title), title_justify="left")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table
