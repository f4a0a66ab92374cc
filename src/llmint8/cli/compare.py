"""`llmint8 compare`: the quantisation schemes of the paper, of others and of this library on one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmint8.cli.compare_report import describe_injection, show
from llmint8.cli.evaluate import logits_of
from llmint8.cli.files import check_file, write_file
from llmint8.cli.models import find_float_model, load_float, load_tokenizer
from llmint8.cli.options import Dtype, JsonOption, examples
from llmint8.cli.output import note, progress, working
from llmint8.cli.text import SAMPLE_NAME, context_length, first_tokens, read_text
from llmint8.convert.outlier_columns import CALIBRATION_TOKENS, sample_text

NAME = "compare"
EPILOG = examples(
    "llmint8 compare smollm2",
    "llmint8 compare smollm2 --inject 6x64 --plot schemes.png",
    "llmint8 compare ./my-model --text book.txt --tokens 1000 --schemes llm-int8,llmint8-auto",
    "llmint8 compare ./my-model --schemes bitsandbytes,llmint8-auto --all",
    "llmint8 compare ./my-model --tokens 200 --json",
)
_TRACE_TOKENS = 16


def _parse_injection(text: str) -> Any:
    from llmint8.analysis.inject import columns_by_factor
    from llmint8.errors import InputError

    try:
        return columns_by_factor(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _parse_schemes(text: str) -> Any:
    from llmint8.analysis.schemes import check_names
    from llmint8.errors import ConfigError

    try:
        return check_names(part.strip() for part in text.split(","))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help='A local folder of a float model, or "smollm2", the small model of the demo.',
            show_default=False,
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="UTF-8 text to predict.", show_default=f"the {SAMPLE_NAME}"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="How much of the text, in tokens.")] = 1024,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a window.", show_default="512, or the model's limit"),
    ] = None,
    schemes: Annotated[
        Any,
        typer.Option(
            parser=_parse_schemes,
            metavar="A,B",
            help="Schemes to compare; a wrong name lists them.",
            show_default="all of them",
        ),
    ] = None,
    inject: Annotated[
        Any,
        typer.Option(
            parser=_parse_injection,
            metavar="COLUMNSxFACTOR",
            help="First give the model that many outlier columns, by a power of two, without changing what "
            "it computes.",
            show_default="none",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="UTF-8 text that calibrates the schemes which need one.",
            show_default="the end of the sample",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also show what each scheme keeps at 16 bits in every layer.")
    ] = False,
    json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw the comparison.", show_default=False)
    ] = None,
) -> None:
    """Compare ways to quantise a float MODEL: the paper's Table 1, other methods, and llmint8's own.

    Each scheme is emulated on the same layers of the same float32 model, those that llmint8 would convert,
    and compared with the model itself: perplexity, the mean KL divergence of the next-token distributions in
    nats, and the share of positions at which both prefer the same token. Windows share no token; a window is
    a batch.
    """
    import torch

    from llmint8.analysis.inject import inject_outliers
    from llmint8.analysis.schemes import (
        NAMES,
        calibrate,
        compare_schemes,
        linear_layers,
        needs_calibration,
        schemes_named,
    )
    from llmint8.cli.compare_picture import draw
    from llmint8.convert import plan_conversion
    from llmint8.plotting import require_matplotlib

    if plot is not None:
        check_file(plot, "--plot", ".png")
        require_matplotlib()
    found = find_float_model(model, "compare")
    name, content = read_text(text)
    with working(f"Loading {model}"):
        tokenizer = load_tokenizer(found.path)
        float_model = load_float(found, Dtype.float32)
    length = context_length(float_model, context)
    ids = first_tokens(tokenizer, content, tokens)
    if len(ids) < tokens:
        note(f"the text holds {len(ids)} tokens, fewer than the {tokens} asked for; all of it is used")
    injection = None
    if inject is not None:
        inputs = {"input_ids": ids[None, :_TRACE_TOKENS], "use_cache": False}
        injection = inject_outliers(float_model, inputs, *inject)
    layers = plan_conversion(float_model, None).convert
    wanted, seen, logits = schemes or NAMES, None, logits_of(float_model)
    calibrated_on = None
    if needs_calibration(wanted):
        calibrated_on, calibrating = _calibration(calibration, tokenizer)
        with working("Reading the calibration text"):
            seen = calibrate(float_model, layers, logits, calibrating, length)
    with progress("Comparing") as step:
        results = compare_schemes(float_model, layers, schemes_named(wanted, seen), logits, ids, length, step)
    about = {
        "model": model,
        "text": name,
        "tokens": len(ids),
        "context": length,
        "scored": results[0].score.scored,
        "layers": len(linear_layers(float_model, layers)),
        "calibration": calibrated_on,
        "inject": None if injection is None else describe_injection(injection),
        "torch": torch.__version__,
    }
    if plot is not None:
        write_file(plot, draw(about, results))
    show(about, results, json, every)


def _calibration(file: Path | None, tokenizer: Any) -> tuple[str, Any]:
    """The name of a calibration text and its tokens: the first of the file, or the last of the sample, which
    only an evaluation on almost all of it meets too."""
    if file is not None:
        name, content = read_text(file)
        return name, first_tokens(tokenizer, content, CALIBRATION_TOKENS)
    sample = first_tokens(tokenizer, sample_text(), len(sample_text()))
    return f"{SAMPLE_NAME}, the last tokens", sample[-CALIBRATION_TOKENS:]
