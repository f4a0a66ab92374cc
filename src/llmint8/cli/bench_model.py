"""A whole model in `llmint8 bench`: what is loaded, the run, and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from llmint8.cli.bench_layer import WIDTH
from llmint8.cli.models import find_float_model, load_tokenizer
from llmint8.cli.output import note, progress, stdout, working
from llmint8.cli.quiet import quiet_transformers
from llmint8.cli.text import first_tokens, read_text
from llmint8.errors import InputError

if TYPE_CHECKING:
    from llmint8.bench.model import Cell, ModelBenchmark, Result


@dataclass(frozen=True)
class Settings:
    """What is asked of every candidate; `rounds` and `budget` are those of `run_model_benchmark`."""

    batches: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int
    budget: float


def measure_model(name: str, settings: Settings) -> ModelBenchmark:
    """The run, with a progress bar. name: of a float model, as `find_model` takes it.

    Raises InputError for prompts that the model or the shipped text is too short for.
    """
    import torch

    from llmint8.bench.model import Workload, run_model_benchmark
    from llmint8.checkpoint import read_json

    found = find_float_model(name, "bench")
    quiet_transformers()
    limit = read_json(found.path / "config.json").get("max_position_embeddings")
    length = settings.prompt_tokens + settings.new_tokens
    if limit is not None and length > limit:
        raise InputError(
            f"{settings.prompt_tokens} prompt and {settings.new_tokens} new tokens exceed the model's "
            f"{limit} positions; lower --prompt-tokens or --new-tokens"
        )
    with working("Reading the text"):
        _, text = read_text(None)
        ids = first_tokens(load_tokenizer(found.path), text, len(text)).tolist()
    loads = [Workload(batch, settings.prompt_tokens, settings.new_tokens) for batch in settings.batches]
    with progress("Writing the model in every form, loading it, and measuring") as step:
        return run_model_benchmark(
            found.path, ids, loads, settings.rounds, settings.budget, torch.get_num_threads(), step
        )


def draw_model(found: ModelBenchmark) -> bytes:
    """The picture."""
    from llmint8.bench.model import draw

    return draw(found)


def show_model(found: ModelBenchmark) -> None:
    """A table for each workload on stdout, who did not run and why on stderr."""
    from llmint8.bench import headline

    console = stdout()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(f"{found.model}: {headline(found.environment)}\n", highlight=False, markup=False)
    for index, load in enumerate(found.workloads):
        rows = "1 prompt" if load.batch == 1 else f"{load.batch} prompts at once"
        title = f"{rows} of {load.prompt_tokens} tokens, {load.new_tokens} new tokens each"
        console.print(title, style="bold", highlight=False)
        console.print(_table(found, index))
    console.print(
        "loading: median of fresh processes, from the form on disk that is named. first token: from the "
        "call on. memory: the most that the process has held so far beyond its libraries. same: new tokens "
        "of a prompt before the first that differs from those of float32.",
        style="dim",
        highlight=False,
    )
    for result in found.results:
        if result.failure is not None:
            note(f"{result.name} did not run: {result.failure}")


def _table(found: ModelBenchmark, index: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("", "on disk"):
        table.add_column(column, no_wrap=True)
    for column in (
        "loading\ns",
        "first token\ns",
        "prompt\ntokens/s",
        "new\ntokens/s",
        "memory\nMiB",
        "same\ntokens",
        "runs",
    ):
        table.add_column(column, justify="right")
    for result in found.results:
        cell = found.cell(result, index)
        if cell is not None:
            table.add_row(*_cells(found, result, cell, index))
    return table


def _cells(found: ModelBenchmark, result: Result, cell: Cell, index: int) -> list[str]:
    return [
        result.name,
        result.form,
        f"{result.load_seconds:.2f}",
        f"{cell.first_seconds:.3f}",
        f"{found.prompt_rate(result, index):,.0f}",
        f"{found.new_rate(result, index):,.1f}",
        "" if cell.peak_bytes is None else f"{cell.peak_bytes / 2**20:,.0f}",
        "" if cell.same_tokens is None else f"{cell.same_tokens:.1f}",
        str(cell.runs),
    ]
