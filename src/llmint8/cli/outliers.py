"""`llmint8 outliers`: which dimensions of a model's activations are outliers, where, and how large."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from llmint8.cli.evaluate import logits_of
from llmint8.cli.files import check_file, write_file
from llmint8.cli.models import find_model, load_float, load_tokenizer
from llmint8.cli.options import Dtype, DtypeOption, JsonOption, examples
from llmint8.cli.output import note, print_json, progress, stdout, working
from llmint8.cli.text import context_length, first_tokens, read_text
from llmint8.errors import LLMInt8Error

if TYPE_CHECKING:
    from llmint8.analysis.outlier_report import ModelOutliers
    from llmint8.checkpoint import CheckpointSummary

NAME = "outliers"
EPILOG = examples(
    "llmint8 outliers smollm2",
    "llmint8 outliers ./my-model --html outliers.html --png outliers.png",
    "llmint8 outliers ./my-model ./my-model-int8 --text book.txt --tokens 4096",
    "llmint8 outliers ./my-model --all --threshold 10",
)
#: Columns of a table that is printed into a file or a pipe.
_WIDTH = 120


def _above_zero(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"the magnitude of an outlier is a number above 0, got {value}")
    return value


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help='Local model folders, float or int8, or "smollm2", the small model of the demo.',
            show_default=False,
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="UTF-8 text to read.", show_default="an extract of the Jargon File"
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="How much of the text, in tokens.")] = 1024,
    threshold: Annotated[
        float, typer.Option(callback=_above_zero, help="Magnitude from which an element is an outlier.")
    ] = 6.0,
    dtype: DtypeOption = Dtype.auto,
    every: Annotated[
        bool, typer.Option("--all", help="Show every layer, not only a row for each input.")
    ] = False,
    json: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a report for a browser, one file.", show_default="not written"
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the same into this file.", show_default="not drawn"),
    ] = None,
) -> None:
    """Show where the inputs of the linear layers are outliers while a model reads a text.

    For each input: the largest magnitude, the share of columns (dimensions) that are outliers anywhere in the
    text, of elements, and of positions with one. And the paper's criterion: dimensions of the hidden state
    that are outliers in at least 25 % of the layers and at 6 % of the positions.

    The text is read in windows of up to 512 tokens. Several models are also compared: how far their most
    common outlier dimension reaches, over their size and their perplexity.
    """
    for file, option, suffix in ((html, "--html", ""), (png, "--png", ".png")):
        if file is not None:
            check_file(file, option, suffix)
    if png is not None:
        from llmint8.analysis.outlier_report import require_matplotlib

        require_matplotlib()
    found = {name: find_model(name) for name in dict.fromkeys(models)}
    source, content = read_text(text)
    measured = [_measure(name, summary, content, tokens, threshold, dtype) for name, summary in found.items()]
    if html is not None or png is not None:
        _write(measured, html, png, source, tokens)
    if json:
        results = {"text": source, "tokens": tokens, "threshold": threshold}
        print_json(results | {"models": [model.to_dict() for model in measured]})
    else:
        _show(measured, every)


def linear_layers(model: Any) -> tuple[str, ...]:
    """The linear layers of a model that are int8, or would become it; fused experts count as one layer."""
    from torch import nn

    from llmint8.convert import plan_conversion
    from llmint8.nn import INT8_MODULES, Int8Embedding

    planned = set(plan_conversion(model, None).convert)
    return tuple(
        name
        for name, module in model.named_modules()
        if not isinstance(module, (nn.Embedding, Int8Embedding))
        and (name in planned or isinstance(module, INT8_MODULES))
    )


def _measure(
    name: str, summary: CheckpointSummary, content: str, tokens: int, threshold: float, dtype: Dtype
) -> ModelOutliers:
    from llmint8.analysis import OutlierRecorder, analyze, evaluate
    from llmint8.analysis.outlier_report import ModelOutliers

    with working(f"Loading {name}"):
        ids = first_tokens(load_tokenizer(summary.path), content, tokens)
        model = load_float(summary, dtype)
    if len(ids) < tokens:
        note(f"the text holds {len(ids)} tokens, fewer than the {tokens} asked for; all of it is used")
    layers = linear_layers(model)
    if not layers:
        raise LLMInt8Error(f"{name} has no linear layer that could become int8; there is nothing to measure")
    with OutlierRecorder(model, layers, threshold) as recorder, progress(f"Running {name}") as step:
        scores = evaluate({name: logits_of(model)}, ids, context_length(model, None), progress=step)
    if recorder.never_called:
        note(f"{len(recorder.never_called)} layers saw no token, {recorder.never_called[0]} for one")
    count = sum(parameter.numel() for parameter in model.parameters())
    return ModelOutliers(name, count, scores[name].perplexity, analyze(recorder.statistics, threshold))


def _write(models: list[ModelOutliers], html: Path | None, png: Path | None, text: str, tokens: int) -> None:
    from llmint8.analysis.outlier_report import draw_outliers, html_report

    if html is not None:
        write_file(html, html_report(models, text, tokens).encode())
    if png is not None:
        with working(f"Drawing {png}"):
            write_file(png, draw_outliers(models))


def _show(models: list[ModelOutliers], every: bool) -> None:
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
    from llmint8.analysis.outlier_report import number, parameters, percent

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
            escape(model.block_label(group.worst.block)),
            percent(group.mean("elements_share")),
            percent(group.mean("affected_share")),
        )
    return table


def _layers(model: ModelOutliers) -> Table:
    from llmint8.analysis.outlier_report import number, percent

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
    from llmint8.analysis.outlier_report import number, percent

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
    by_projection: dict[str, list[str]] = {}
    for layer in model.report.mostly_outliers:
        by_projection.setdefault(layer.projection, []).append(model.block_label(layer.block))
    for projection, blocks in by_projection.items():
        where = f" of layer {', '.join(dict.fromkeys(blocks))}" if any(blocks) else ""
        yield f"Most columns are outliers: {projection}{where}"


def _comparison(models: list[ModelOutliers]) -> Table:
    from llmint8.analysis.outlier_report import number, parameters, percent

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
