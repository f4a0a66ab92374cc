"""The picture of a whole-model run: bars, a row of panels for each workload."""

from __future__ import annotations

import io
from typing import Any

from llmint8.bench.model.result import ModelBenchmark, Result
from llmint8.plotting import require_matplotlib

_OURS, _OTHERS = "#c1272d", "#5b86ad"


def draw(found: ModelBenchmark) -> bytes:
    """A PNG 1,200 pixels wide. Raises LLMInt8Error without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    ran = [result for result in found.results if result.load_seconds is not None]
    down = len(found.workloads)
    figure = Figure(figsize=(12, 1.5 + down * (0.9 + 0.3 * len(ran))), dpi=100, layout="constrained")
    panels = figure.subplots(down, 4, squeeze=False, sharey=True)
    for index, load in enumerate(found.workloads):
        row = panels[index]
        _bars(row[0], "prompt tokens/s", ran, [found.prompt_rate(result, index) for result in ran])
        _bars(row[1], "new tokens/s", ran, [found.new_rate(result, index) for result in ran])
        _bars(row[2], "peak memory, MiB", ran, [_mebibytes(found, result, index) for result in ran])
        _bars(row[3], "loading, s", ran, [result.load_seconds for result in ran])
        row[0].set_ylabel(
            f"batch {load.batch}: {load.prompt_tokens} prompt\nand {load.new_tokens} new tokens each",
            fontsize=10,
        )
        if index:
            row[3].remove()  # the model is loaded once, whatever the workload
    about = found.environment
    figure.suptitle(f"{found.model}: {about['cpu']}, threads: {about['threads']}", fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _mebibytes(found: ModelBenchmark, result: Result, index: int) -> float | None:
    cell = found.cell(result, index)
    return None if cell is None or cell.peak_bytes is None else cell.peak_bytes / 2**20


def _bars(panel: Any, title: str, results: list[Result], values: list[float | None]) -> None:
    panel.set_title(title, fontsize=11)
    places = list(range(len(results)))
    colours = [_OURS if result.name.startswith("llmint8") else _OTHERS for result in results]
    panel.barh(places, [value or 0.0 for value in values], color=colours, height=0.72)
    panel.set_yticks(places, [result.name for result in results], fontsize=10)
    for place, value in zip(places, values, strict=True):
        label = " none" if value is None else f" {value:,.1f}" if value < 100 else f" {value:,.0f}"
        panel.text(value or 0.0, place, label, va="center", fontsize=9)
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.set_xlim(0, 1.25 * max((value or 0.0 for value in values), default=0.0) or 1.0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="x", labelsize=8)
    panel.locator_params(axis="x", nbins=4)
