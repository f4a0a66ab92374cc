"""`llmint8 quantize`: a float model folder to an int8 one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from llmint8.cli.files import check_target, new_folder, save_model
from llmint8.cli.models import find_float_model, load_float
from llmint8.cli.options import Dtype, DtypeOption, JsonOption, ModelArgument, ThresholdOption, examples
from llmint8.cli.output import print_json, progress, stdout, working

NAME = "quantize"
EPILOG = examples(
    "llmint8 quantize ./my-model ./my-model-int8",
    "llmint8 quantize ./my-model ./my-model-int8 --threshold auto --dtype bfloat16",
    "llmint8 quantize ./my-model ./my-model-int8 --skip down_proj --skip model.layers.0 --json",
)
#: What lies beside the weights and belongs to the model: tokenizer, chat template, generation settings.
_COMPANIONS = (".json", ".jinja", ".model", ".txt")


def command(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    threshold: ThresholdOption = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A module that stays float: a full name, a parent, or the last part; may be repeated.",
            show_default="the output head",
        ),
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint.")] = False,
    json: JsonOption = False,
) -> None:
    """Convert a float MODEL to an int8 checkpoint in OUT, which from_pretrained, generate and eval load.

    OUT appears whole or not at all. The tokenizer and the generation settings are copied along.
    """
    from llmint8.config import Int8Config
    from llmint8.convert import quantize_model

    found = find_float_model(model, "quantize")
    check_target(out, force, found.path)
    config = Int8Config(skip_modules=tuple(skip) if skip else None)
    if threshold is not None:
        config = Int8Config(threshold, config.skip_modules)
    with working(f"Loading {model}"):
        loaded = load_float(found, dtype)
    with progress("Converting") as step:
        report = quantize_model(loaded, config, step)
    with working(f"Writing {out}"), new_folder(out) as new:
        save_model(loaded, new)
        _copy_companions(found.path, new)
    if json:
        print_json({"out": str(out), "config": config.to_dict(), **report.to_dict()})
    else:
        console = stdout()
        console.print(report)
        console.print(f"Written to {out}", soft_wrap=True, markup=False, highlight=False)


def _copy_companions(source: Path, out: Path) -> None:
    for file in source.iterdir():
        own = file.name == "config.json" or file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COMPANIONS and not own:
            shutil.copyfile(file, out / file.name)
