"""The picture of a benchmark: speed over the number of rows, a panel for each layer, the limits behind."""

from __future__ import annotations

import io
import math
from typing import Any

from llmint8.bench.candidates import FLOATS, INT_MM, OURS, PLAIN, SECOND_DIGIT
from llmint8.bench.result import Benchmark, Point, headline
from llmint8.plotting import require_matplotlib

#: Colour and line of each candidate. Ours share a colour; the three floats are shades of another.
_STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": "#c1272d", "linewidth": 2.6, "marker": "o", "markersize": 5, "zorder": 5},
    "llmint8 auto": {"color": "#c1272d", "linestyle": "--", "linewidth": 1.4, "zorder": 4},
    SECOND_DIGIT: {"color": "#e377a2", "linestyle": "--", "linewidth": 1.4, "zorder": 4},
    PLAIN: {"color": "#c1272d", "linestyle": ":", "linewidth": 1.6, "zorder": 4},
    "llmint8 6.0, 1 %": {"color": "#f08a5d", "linewidth": 1.2},
    "llmint8 6.0, 5 %": {"color": "#f08a5d", "linestyle": "--", "linewidth": 1.2},
    "llmint8 6.0, 100 %": {"color": "#f08a5d", "linestyle": ":", "linewidth": 1.4},
    "float32": {"color": "#08306b", "linewidth": 1.4, "marker": "s", "markersize": 3.5},
    "bfloat16": {"color": "#2f7fc1", "linewidth": 1.4, "marker": "s", "markersize": 3.5},
    "float16": {"color": "#8cc0e8", "linewidth": 1.4, "marker": "s", "markersize": 3.5},
    INT_MM: {"color": "#3f3f3f", "linewidth": 1.2, "linestyle": "-.", "marker": "x", "markersize": 4},
    "bitsandbytes": {"color": "#2a9d5c", "linewidth": 1.4, "marker": "^", "markersize": 4},
    "torchao": {"color": "#8e44ad", "linewidth": 1.4, "marker": "v", "markersize": 4},
}
_LIMIT = {"color": "#b5b5b5", "linewidth": 5, "alpha": 0.7, "solid_capstyle": "round", "zorder": 1}
#: Straight pieces of the limit, which bends between two numbers of rows.
_LIMIT_STEPS = 200


def draw(benchmark: Benchmark) -> bytes:
    """A PNG. Raises LLMInt8Error without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys((point.k, point.n) for point in benchmark.points))
    across = math.ceil(math.sqrt(len(layers)))
    down = math.ceil(len(layers) / across)
    figure = Figure(figsize=(max(5.4 * across, 8), 4.1 * down + 1.7), dpi=140, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    for panel, (k, n) in zip(panels, layers, strict=False):
        _panel(panel, benchmark, [point for point in benchmark.points if (point.k, point.n) == (k, n)])
    for panel in panels[len(layers) :]:
        panel.remove()
    known = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    columns = 3 if across == 1 else 4
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(
        f"Speed of one linear layer: G operations/s, higher is better\n{headline(benchmark.environment)}",
        fontsize=12,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _panel(panel: Any, benchmark: Benchmark, points: list[Point]) -> None:
    points = sorted(points, key=lambda point: point.m)
    rows = [point.m for point in points]
    k, n = points[0].k, points[0].n
    steps = [rows[0] * (rows[-1] / rows[0]) ** (i / _LIMIT_STEPS) for i in range(_LIMIT_STEPS + 1)]
    limit = [_speed(k, n, m, benchmark.limits.seconds(k, n, m)[0]) for m in steps]
    panel.plot(steps, limit, label="limit: memory or int8", **_LIMIT)
    for name in benchmark.names():
        ran = [point for point in points if name in point.seconds]
        if ran:
            speeds = [_speed(k, n, p.m, p.seconds[name]) for p in ran]
            panel.plot([p.m for p in ran], speeds, label=_label(name), **{"marker": "."} | _STYLES[name])
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(rows, [str(m) for m in rows])
    panel.minorticks_off()
    panel.yaxis.set_major_locator(_locator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(color="#e6e6e6")
    panel.set_axisbelow(True)
    panel.set_title(f"K×N = {k}×{n}", fontsize=11)
    panel.set_xlabel("rows M")
    panel.set_ylabel("G operations/s")
    panel.tick_params(labelleft=True)
    panel.spines[["top", "right"]].set_visible(False)


def _locator() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 2, 5))


def _speed(k: int, n: int, m: float, seconds: float) -> float:
    return 2 * k * n * m / seconds / 1e9


def _label(name: str) -> str:
    return f"torch {name}" if name in FLOATS else f"{name} outliers" if name.endswith("%") else name
