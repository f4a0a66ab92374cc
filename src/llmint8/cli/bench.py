"""`llmint8 bench`: one linear layer, ours against torch's and other libraries', and against the machine."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from llmint8.cli.files import check_file, write_file
from llmint8.cli.options import examples
from llmint8.cli.output import note, progress, stdout

if TYPE_CHECKING:
    from llmint8.bench import Benchmark, Point

NAME = "bench"
EPILOG = examples(
    "llmint8 bench --quick",
    "llmint8 bench --json layer.json --plot layer.png",
    "llmint8 bench --shapes 4096x4096,4096x11008 --rows 1,16,512 --threads 1",
    "LLMINT8_ISA=avx2 llmint8 bench",
)
_SHAPES = ((576, 1536), (2048, 2048), (4096, 4096), (4096, 11008))
_ROWS = (1, 4, 16, 64, 128, 512)
_BUDGET = 1.0
_QUICK_SHAPES = ((576, 1536), (2048, 2048))
_QUICK_ROWS = (1, 16, 128)
_QUICK_BUDGET = 0.2
#: Sides of the square product that gives the int8 limit.
_PEAK_SIZE, _QUICK_PEAK_SIZE = 4096, 2048
#: Columns of a table that is printed into a file or a pipe.
_WIDTH = 120


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
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels.", show_default="torch's")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timings of each candidate; the median counts.")] = 30,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="A candidate that has used as much at a point sits out after three timings.",
            show_default=f"{_BUDGET}; {_QUICK_BUDGET} with --quick",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two small layers and less patience: half a minute.")
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
    """Time one int8 linear layer against torch's float types, torch._int_mm, bitsandbytes and torchao.

    All that are installed take turns in one process, on weights rotated past the caches. Inputs are bfloat16
    (float32 and float16 for torch's own) with six columns of outliers. torch._int_mm is the integer product
    alone. The two limits, how fast memory is read and how fast int8 products run, are measured in the same
    run. It takes several minutes on two cores.
    """
    import torch

    from llmint8 import bench
    from llmint8.plotting import require_matplotlib

    if json is not None:
        check_file(json, "--json")
    if plot is not None:
        check_file(plot, "--plot", ".png")
        require_matplotlib()
    if threads is not None:
        torch.set_num_threads(threads)
    with progress("Measuring") as step:
        found = bench.run_benchmark(
            shapes or (_QUICK_SHAPES if quick else _SHAPES),
            rows or (_QUICK_ROWS if quick else _ROWS),
            rounds,
            budget if budget is not None else _QUICK_BUDGET if quick else _BUDGET,
            _QUICK_PEAK_SIZE if quick else _PEAK_SIZE,
            step,
        )
    if json is not None:
        write_file(json, json_format.dumps(found.to_dict(), indent=2).encode() + b"\n")
    if plot is not None:
        write_file(plot, bench.draw(found))
    _show(found)


def _show(found: Benchmark) -> None:
    console = stdout()
    if not console.is_terminal:
        console.width = _WIDTH
    about = found.environment
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    console.print(
        f"{about['cpu']}, {threads}, torch {about['torch']}, kernels {about['kernels']}\n"
        f"limits: memory {found.limits.bytes_per_second / 1e9:.1f} GB/s, "
        f"int8 {found.limits.operations_per_second / 1e9:.0f} G operations/s\n",
        highlight=False,
        markup=False,
    )
    for title, table, caption in (_speed_table(found), _outlier_table(found)):
        console.print(title, style="bold", highlight=False)
        console.print(table)
        console.print(f"{caption} Last row: geometric means.\n", style="dim", highlight=False)
    for reason in _failures(found):
        note(reason)
    if "memory_not_measured" in about:
        note(f"memory was not measured: {about['memory_not_measured']}")


def _failures(found: Benchmark) -> list[str]:
    """One line for each candidate and reason, with the points that it concerns."""
    where: dict[tuple[str, str], list[str]] = {}
    for p in found.points:
        for name, reason in p.failures.items():
            where.setdefault((name, reason), []).append(f"{p.k}×{p.n} M={p.m}")
    return [f"{name} did not run at {', '.join(at)}: {reason}" for (name, reason), at in where.items()]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("K×N", no_wrap=True)
    for column in ("M", *columns):
        table.add_column(column, justify="right")
    return table


def _speed_table(found: Benchmark) -> tuple[str, Table, str]:
    """Title, table and caption: ours in µs and as a share of the limit; the others' time as a multiple."""
    from llmint8.bench import geometric_mean
    from llmint8.bench.candidates import OURS

    others = [name for name in found.names() if not name.startswith("llmint8")]
    title = "Time of the others over llmint8 at threshold 6.0 (above 1: llmint8 is faster)"
    caption = "of limit: the least time that reading the weights or the int8 products take, over ours."
    table = _table(
        "llmint8\nµs",
        "of limit",
        "fastest\nfloat",
        *(name.removeprefix("torch.") for name in others),
    )
    for p in found.points:
        share, binds = found.limit_share(p)
        ratios = (p.float_ratio(), *(p.ratio(name) for name in others))
        microseconds = f"{p.seconds[OURS] * 1e6:,.0f}"
        table.add_row(
            f"{p.k}×{p.n}", str(p.m), microseconds, f"{share:.0%} {binds}", *(_cell(r) for r in ratios)
        )
    means = [geometric_mean(p.float_ratio() for p in found.points)]
    means += [geometric_mean(p.ratio(name) for p in found.points) for name in others]
    table.add_section()
    table.add_row("mean", "", "", "", *(_cell(mean) for mean in means))
    return title, table, caption


def _outlier_table(found: Benchmark) -> tuple[str, Table, str]:
    """Title, table and caption: ours over ours without outliers, and the memory of a call."""
    from llmint8.bench import geometric_mean
    from llmint8.bench.candidates import PLAIN

    ours = [name for name in found.names() if name.startswith("llmint8") and name != PLAIN]
    title = "What outliers cost: time of llmint8 over its time at threshold 0"
    caption = (
        "1 %, 5 %, 100 %: that share of each row, in columns of its own. "
        "memory: the most that one call takes beyond what lay there, and its bound."
    )
    table = _table(
        "threshold 0\nµs",
        *(name.removeprefix("llmint8 ") for name in ours),
        "memory\nMiB",
    )
    for p in found.points:
        ratios = (_cell(p.ratio(name, PLAIN)) for name in ours)
        table.add_row(f"{p.k}×{p.n}", str(p.m), f"{p.seconds[PLAIN] * 1e6:,.0f}", *ratios, _memory(p))
    means = (_cell(geometric_mean(p.ratio(name, PLAIN) for p in found.points)) for name in ours)
    table.add_section()
    table.add_row("mean", "", "", *means, "")
    return title, table, caption


def _cell(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _memory(point: Point) -> str:
    from llmint8.bench.memory import bound

    if point.extra_bytes is None:
        return ""
    return f"{point.extra_bytes / 2**20:.1f} of {bound(point.k, point.n, point.m) / 2**20:.1f}"
