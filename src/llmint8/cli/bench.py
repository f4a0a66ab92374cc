"""`llmint8 bench`: one linear layer, or a whole model, ours against torch's and other libraries'."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer

from llmint8.cli.bench_layer import draw_layers, measure_layers, show_layers
from llmint8.cli.bench_model import Settings, draw_model, measure_model, show_model
from llmint8.cli.files import check_file, write_file
from llmint8.cli.options import examples


class _Found(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


F = TypeVar("F", bound=_Found)
NAME = "bench"
EPILOG = examples(
    "llmint8 bench --quick",
    "llmint8 bench --json layer.json --plot layer.png",
    "llmint8 bench --shapes 4096x4096,4096x11008 --rows 1,16,512 --threads 1",
    "LLMINT8_ISA=avx2 llmint8 bench",
    "llmint8 bench --model smollm2 --json model.json --plot model.png",
    "llmint8 bench --model ./my-model --batches 1 --prompt-tokens 128 --new-tokens 32 --rounds 3",
)
_SHAPES = ((576, 1536), (2048, 2048), (4096, 4096), (4096, 11008))
_ROWS = (1, 4, 16, 64, 128, 512)
_BUDGET = 0.5
_QUICK_SHAPES = ((576, 1536), (2048, 2048))
_QUICK_ROWS = (1, 16, 128)
_QUICK_BUDGET = 0.2
#: Sides of the square product that gives the int8 limit.
_PEAK_SIZE, _QUICK_PEAK_SIZE = 4096, 2048
#: Timings of each candidate on a layer.
_ROUNDS = 300
_MODEL = Settings(batches=(1, 8), prompt_tokens=512, new_tokens=64, rounds=5, budget=120.0)
_QUICK_MODEL = Settings(batches=(1,), prompt_tokens=128, new_tokens=16, rounds=3, budget=20.0)


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{value} is below 1")
    return value


def _shape(text: str) -> tuple[int, int]:
    k, n = text.replace("×", "x").split("x")
    return _whole(k), _whole(n)


def _list_of(parse: Callable[[str], Any], meaning: str) -> Callable[[str], Any]:
    def parse_all(text: str) -> Any:
        try:
            return tuple(dict.fromkeys(parse(part) for part in text.split(",")))
        except ValueError as error:
            raise typer.BadParameter(f"got {text!r}; give {meaning}, separated by commas") from error

    return parse_all


def command(
    shapes: Annotated[
        Any,
        typer.Option(
            parser=_list_of(_shape, "layers such as 4096x11008, inputs by outputs"),
            metavar="KxN,...",
            help="Layers to measure, inputs by outputs.",
            show_default=",".join(f"{k}x{n}" for k, n in _SHAPES),
        ),
    ] = None,
    rows: Annotated[
        Any,
        typer.Option(
            parser=_list_of(_whole, "numbers of rows from 1 on"),
            metavar="M,...",
            help="Rows (tokens) of a call.",
            show_default=",".join(map(str, _ROWS)),
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help='Measure a whole model instead: a local folder of a float model, or "smollm2".',
            show_default="one layer",
        ),
    ] = None,
    batches: Annotated[
        Any,
        typer.Option(
            parser=_list_of(_whole, "numbers of prompts from 1 on"),
            metavar="B,...",
            help="Prompts that a whole model continues at once.",
            show_default=",".join(map(str, _MODEL.batches)),
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of each prompt of a whole model.", show_default=str(_MODEL.prompt_tokens)
        ),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens that it adds to each prompt.", show_default=str(_MODEL.new_tokens)),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of torch, of the kernels and of others.", show_default="torch's"),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=3,
            help="Timings of each candidate; the median counts.",
            show_default=f"{_ROUNDS}; {_MODEL.rounds} for a whole model",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="A candidate that has used as much sits out after three timings, of a model after one.",
            show_default=f"{_BUDGET:g}; {_MODEL.budget:g} for a whole model",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less of everything, in a fraction of the time.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write every time, in seconds, to this file.", show_default="not written"
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw speed over M into this file.", show_default="not drawn"),
    ] = None,
) -> None:
    """Time one int8 linear layer, or a whole model, against torch, other int8 libraries and llama.cpp.

    One layer: torch's float types, torch._int_mm, bitsandbytes and torchao, all that are installed, take
    turns in one process, on weights rotated past the caches. Inputs are bfloat16 (float32 and float16 for
    torch's own) with six columns of outliers. torch._int_mm is the integer product alone. The two limits,
    how fast memory is read and how fast int8 products run, are measured in the same run. It takes several
    minutes.

    A whole model: transformers in float32 and bfloat16, bitsandbytes, torchao, llama.cpp (Q8_0, through
    llama-cpp-python, of Llama models) and llmint8, as it is and with its fast path, each in a process of its
    own, take turns. Measured are loading, the time to the first token, tokens per second and memory. All
    forms of the model are written to the temporary folder first. It takes half an hour for smollm2.
    """
    import torch

    from llmint8.plotting import require_matplotlib

    of_layer = {"--shapes": shapes, "--rows": rows}
    of_model = {"--batches": batches, "--prompt-tokens": prompt_tokens, "--new-tokens": new_tokens}
    for name, value in (of_model if model is None else of_layer).items():
        if value is not None:
            meant = "a whole model: it needs --model" if model is None else "one layer: leave it out"
            raise typer.BadParameter(f"{name} is for {meant}")
    if json is not None:
        check_file(json, "--json")
    if plot is not None:
        check_file(plot, "--plot", ".png")
        require_matplotlib()
    if threads is not None:
        torch.set_num_threads(threads)
    if model is not None:
        given = {
            "batches": batches,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "rounds": rounds,
            "budget": budget,
        }
        settings = replace(
            _QUICK_MODEL if quick else _MODEL, **{k: v for k, v in given.items() if v is not None}
        )
        _finish(measure_model(model, settings), draw_model, show_model, json, plot)
        return
    layers = measure_layers(
        shapes or (_QUICK_SHAPES if quick else _SHAPES),
        rows or (_QUICK_ROWS if quick else _ROWS),
        rounds or _ROUNDS,
        budget if budget is not None else _QUICK_BUDGET if quick else _BUDGET,
        _QUICK_PEAK_SIZE if quick else _PEAK_SIZE,
    )
    _finish(layers, draw_layers, show_layers, json, plot)


def _finish(
    found: F,
    draw: Callable[[F], bytes],
    show: Callable[[F], None],
    json: Path | None,
    plot: Path | None,
) -> None:
    if json is not None:
        write_file(json, json_format.dumps(found.to_dict(), indent=2).encode() + b"\n")
    if plot is not None:
        write_file(plot, draw(found))
    show(found)
