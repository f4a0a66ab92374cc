"""`llmint8 outliers`: which dimensions of a model's activations are outliers, where, and how large."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmint8.cli.evaluate import logits_of
from llmint8.cli.files import check_file, write_file
from llmint8.cli.models import find_model, load_float, load_tokenizer
from llmint8.cli.options import Dtype, DtypeOption, JsonOption, examples
from llmint8.cli.output import note, print_json, progress, working
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


def _above_zero(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"the magnitude of an outlier is a number above 0, got {value}")
    return value


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
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
        from llmint8.plotting import require_matplotlib

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
        from llmint8.cli.outlier_tables import show

        show(measured, every)


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
    from llmint8.nn import Int8Experts, is_experts

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
    modules = [model.get_submodule(layer) for layer in layers]
    if any(isinstance(module, Int8Experts) or is_experts(module) for module in modules):
        note("fused experts show what goes into them; the input of their second layer is not seen")
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
