"""The picture of a comparison: what each scheme loses, as bars on a logarithmic scale, and what it keeps."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from llmint8.plotting import require_matplotlib

if TYPE_CHECKING:
    from llmint8.analysis.schemes import Comparison

_OURS, _OTHERS = "#c1272d", "#7f9db9"


def draw(about: dict[str, Any], results: list[Comparison]) -> bytes:
    """A PNG, 1,200 pixels wide. Raises LLMInt8Error without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    # One that loses nothing has no place on a logarithmic scale.
    shown = [result for result in results if (result.score.kl or 0) > 0]
    base = next((result for result in results if result.scheme.name == "float"), None)
    figure = Figure(figsize=(12, 0.42 * max(len(shown), 4) + 2.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [result.scheme.title for result in shown]
    colours = [_OURS if result.scheme.name.startswith("llmint8") else _OTHERS for result in shown]
    _bars(left, names, [result.score.kl or 0.0 for result in shown], colours, "{:.4f}")
    left.set_xlabel("KL divergence from the float model, nats (lower is better)")
    _bars(right, names, [result.score.perplexity for result in shown], colours, "{:,.2f}")
    right.set_xlabel("perplexity")
    if base is not None:
        right.axvline(base.score.perplexity, color="#3f3f3f", linestyle="--", linewidth=1.2)
        right.set_title(f"dashed: float, {base.score.perplexity:,.2f}", fontsize=11, loc="right")
    if shown:
        left.invert_yaxis()
    title = f"{about['model']}: {about['tokens']:,} tokens of {about['text']}"
    if about["inject"]:
        title += f", {len(about['inject']['columns'])} outlier columns × {about['inject']['factor']}"
    figure.suptitle(title, fontsize=13)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _bars(panel: Any, names: list[str], values: list[float], colours: list[str], shape: str) -> None:
    bars = panel.barh(names, values, color=colours)
    panel.bar_label(bars, [shape.format(value) for value in values], padding=4, fontsize=10)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(_locator(values))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.minorticks_off()
    if values:
        panel.set_xlim(min(values) / 1.6, max(values) * 3)
    panel.tick_params(labelsize=10)
    panel.grid(axis="x", color="#e6e6e6")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _locator(values: list[float]) -> Any:
    """Ticks that are far enough apart: 1, 2 and 5 of each decade, or decades alone."""
    from matplotlib.ticker import LogLocator

    wide = bool(values) and max(values) / min(values) > 50
    return LogLocator(base=10, subs=(1,) if wide else (1, 2, 5))
