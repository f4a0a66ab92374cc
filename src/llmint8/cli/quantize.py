"""`llmint8 quantize`: a float model folder to an int8 one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from llmint8.cli.models import find_float_model, load_tokenizer
from llmint8.cli.options import (
    Dtype,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ModuleThresholdOption,
    ThresholdOption,
    examples,
)
from llmint8.cli.output import print_json, progress, stdout
from llmint8.cli.quiet import quiet_transformers
from llmint8.cli.text import first_tokens, read_text

NAME = "quantize"
EPILOG = examples(
    "llmint8 quantize ./my-model ./my-model-int8",
    "llmint8 quantize ./my-model ./my-model-int8 --threshold auto --dtype bfloat16",
    "llmint8 quantize ./my-model ./my-model-int8 --skip down_proj --skip model.layers.0 --json",
    "llmint8 quantize ./my-model ./my-model-int8 --module-threshold down_proj=auto",
    "llmint8 quantize ./my-model ./my-model-int8 --head --embeddings",
    "llmint8 quantize ./my-model ./my-model-int8 --threshold auto --outlier-weights int16",
    "llmint8 quantize ./my-model ./my-model-w8a8 --format compressed-tensors --max-shard-size 2GB",
)


class Format(str, Enum):
    """Who can read the result."""

    llmint8 = "llmint8"
    bitsandbytes = "bitsandbytes"
    compressed_tensors = "compressed-tensors"


class OutlierWeights(str, Enum):
    """Bits of the weights that outliers meet."""

    int8 = "int8"
    int16 = "int16"


def command(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    threshold: ThresholdOption = None,
    module_threshold: ModuleThresholdOption = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A module that stays float: a full name, a parent, or the last part; may be repeated.",
            show_default="the output head",
        ),
    ] = None,
    head: Annotated[
        bool,
        typer.Option("--head", help="Convert the output head too; tied, it needs --embeddings."),
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Convert embeddings too; tied, they need --head.")
    ] = False,
    outlier_weights: Annotated[
        OutlierWeights,
        typer.Option(
            help="int16: a second weight digit in the 2 % of columns that are outliers most often while the "
            "float model, which must fit the memory, reads a text.",
        ),
    ] = OutlierWeights.int8,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="UTF-8 text for --outlier-weights int16; its first 512 tokens are read.",
            show_default="the end of the shipped text",
        ),
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    format: Annotated[
        Format, typer.Option(help="Who reads OUT: this library, bitsandbytes, or vLLM.", case_sensitive=False)
    ] = Format.llmint8,
    max_shard_size: Annotated[
        str,
        typer.Option(metavar="SIZE", help="The largest file, such as 500MB; a larger tensor has its own."),
    ] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint.")] = False,
    json: JsonOption = False,
) -> None:
    """Convert a float MODEL to an int8 checkpoint in OUT, which from_pretrained, generate and eval load.

    The model is read, converted and written piece by piece, so it may be larger than the memory (but not with
    --outlier-weights int16, which loads it once to find columns). OUT appears whole or not at all; a
    conversion that was killed goes on where it was when it is started again. The tokenizer and the generation
    settings are copied along.
    """
    from llmint8.config import Int8Config
    from llmint8.convert.outlier_columns import CALIBRATION_TOKENS
    from llmint8.errors import ConfigError
    from llmint8.streaming import convert_checkpoint

    quiet_transformers()
    found = find_float_model(model, "quantize")
    config = Int8Config(
        Int8Config.threshold if threshold is None else threshold,
        tuple(skip) if skip else None,
        head,
        embeddings,
        outlier_weights.value,
        tuple(module_threshold or ()),
    )
    if calibration is not None and outlier_weights is OutlierWeights.int8:
        raise ConfigError("--calibration is a text for --outlier-weights int16; give that too, or neither")
    ids = None
    if calibration is not None:
        _, content = read_text(calibration)
        ids = first_tokens(load_tokenizer(found.path), content, CALIBRATION_TOKENS)[None]
    with progress("Converting") as step:
        report = convert_checkpoint(
            found.path,
            out,
            config,
            format=format.value,
            dtype=dtype.value,
            max_shard_size=max_shard_size,
            force=force,
            progress=step,
            calibration_ids=ids,
        )
    if json:
        settings = {"out": str(out), "format": format.value, "config": config.to_dict()}
        print_json({**settings, **report.to_dict()})
    else:
        console = stdout()
        console.print(report)
        console.print(f"Written to {out}", soft_wrap=True, markup=False, highlight=False)
