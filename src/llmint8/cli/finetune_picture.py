"""The picture of a training: its losses over the steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from llmint8.plotting import require_matplotlib

#: Losses of so many steps are averaged: single ones depend on what text a step sees.
SMOOTHED = 5


def draw(curves: Mapping[str, Sequence[float]]) -> bytes:
    """A PNG, 900 pixels wide, of the losses of each step, by name. Raises LLMInt8Error without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, losses in curves.items():
        width = min(SMOOTHED, len(losses))
        means = [sum(losses[i : i + width]) / width for i in range(len(losses) - width + 1)]
        axes.plot(range(width, len(losses) + 1), means, label=name, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats per token (mean of the last {SMOOTHED} steps)")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
