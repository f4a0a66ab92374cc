"""One layer in `llmint8 bench`: the run, and its tables of ratios, of what outliers cost, and of limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from llmint8.cli.output import note, progress, stdout

if TYPE_CHECKING:
    from llmint8.bench import Benchmark, Point

#: Columns of a table that is printed into a file or a pipe.
WIDTH = 120


def measure_layers(
    shapes: Sequence[tuple[int, int]], rows: Sequence[int], rounds: int, budget: float, peak_size: int
) -> Benchmark:
    """The run, with a progress bar."""
    from llmint8 import bench

    with progress("Measuring") as step:
        return bench.run_benchmark(shapes, rows, rounds, budget, peak_size, step)


def draw_layers(found: Benchmark) -> bytes:
    """The picture."""
    from llmint8 import bench

    return bench.draw(found)


def show_layers(found: Benchmark) -> None:
    """The tables on stdout, remarks on stderr."""
    from llmint8.bench import headline

    console = stdout()
    if not console.is_terminal:
        console.width = WIDTH
    about = found.environment
    console.print(
        f"{headline(about)}\n"
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
