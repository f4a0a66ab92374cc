"""The same as a picture: maps of the inputs, columns and positions by layer, and models side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from llmint8.analysis.outlier_report.charts import PAPER
from llmint8.analysis.outlier_report.heatmap import DARKEST, bin_dimensions, colour, scale_top
from llmint8.analysis.outlier_report.model import ModelOutliers, number, parameters
from llmint8.plotting import require_matplotlib

#: 12 inches at 150 dots: 1,800 pixels, with letters that still read at 1,200.
_WIDTH, _DPI = 12.0, 150
_COLOURS = ("#1d5fa8", "#c2410c", "#2a7d4f", "#8a3ea8", "#7a6500", "#0f7c8a")
_MAP_HEIGHT, _CHART_HEIGHT, _TITLE_HEIGHT = 1.75, 2.9, 0.5


def draw_outliers(models: Sequence[ModelOutliers]) -> bytes:
    """A PNG, 1,800 pixels wide. Raises LLMInt8Error without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    heights = [_TITLE_HEIGHT + _MAP_HEIGHT * len(_maps(m)) + _CHART_HEIGHT for m in models]
    if len(models) > 1:
        heights.insert(0, _TITLE_HEIGHT + _CHART_HEIGHT)
    figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=_DPI, layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if len(models) > 1:
        _phase(parts.pop(0), models)
    for part, model in zip(parts, models, strict=True):
        _model(part, model)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _maps(model: ModelOutliers) -> list[Any]:
    return [group for group in model.report.groups if group.members[0].block is not None]


def _model(figure: Any, model: ModelOutliers) -> None:
    report, groups = model.report, _maps(model)
    shared = ", ".join(str(d.index) for d in report.shared) or "none"
    figure.suptitle(
        f"{model.label}: largest magnitude by layer and dimension\n"
        f"{parameters(model.parameters)} parameters; dimensions shared by the paper's criterion: {shared}",
        fontsize=13,
    )
    grid = figure.add_gridspec(
        len(groups) + 1, 2, height_ratios=[_MAP_HEIGHT] * len(groups) + [_CHART_HEIGHT]
    )
    top = scale_top(model.largest, report.threshold)
    panels = [figure.add_subplot(grid[row, :]) for row in range(len(groups))]
    for panel, group in zip(panels, groups, strict=True):
        features = group.members[0].features
        binned = bin_dimensions(group.magnitude)
        panel.imshow(
            colour(binned.values, report.threshold, top),
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, binned.values.shape[1] * binned.width - 0.5, len(group.blocks) - 0.5, -0.5),
        )
        panel.set_xlim(-0.5, features - 0.5)
        step = math.ceil(len(group.blocks) / 7)
        panel.set_yticks(
            range(0, len(group.blocks), step), [model.block_label(b) for b in group.blocks[::step]]
        )
        panel.set_title(group.name + (" (hidden state)" if group.hidden else ""), loc="left", fontsize=11)
        panel.set_ylabel("layer")
    if panels:
        _scale(figure, panels, report.threshold, top)
    for column, (share, title) in enumerate(
        (("columns_share", "Outlier columns, %"), ("affected_share", "Positions with an outlier, %"))
    ):
        panel = figure.add_subplot(grid[-1, column])
        _by_block(panel, model, share)
        panel.set_title(f"{title} (|x| ≥ {report.threshold:g})", loc="left", fontsize=11)
        if column == 0:
            handles, labels = panel.get_legend_handles_labels()
    if groups:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=10)


def _scale(figure: Any, panels: list[Any], threshold: float, top: float) -> None:
    import torch
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    steps = torch.linspace(math.log(threshold * DARKEST), math.log(top), 200).exp()
    colours = ListedColormap(colour(steps, threshold, top) / 255.0)
    scale = ScalarMappable(LogNorm(threshold * DARKEST, top), colours)
    bar = figure.colorbar(scale, ax=panels, fraction=0.03, pad=0.01, aspect=40)
    ticks = [v for v in (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5) if threshold * DARKEST <= v <= top]
    bar.set_ticks([*ticks, threshold], labels=[*(number(v) for v in ticks), f"{threshold:g}"])
    bar.minorticks_off()


def _by_block(panel: Any, model: ModelOutliers, share: str) -> None:
    place = {block: i for i, block in enumerate(model.report.blocks)}
    for index, group in enumerate(_maps(model)):
        worst: dict[int, float] = {}
        for member in group.members:
            at = place[member.block]
            worst[at] = max(worst.get(at, 0.0), 100 * getattr(member, share))
        style = {"color": _COLOURS[index % len(_COLOURS)], "marker": "o", "markersize": 3}
        panel.plot(list(worst), list(worst.values()), label=group.name, **style)
    step = math.ceil(max(len(place), 1) / 15)
    panel.set_xticks(range(0, len(place), step), [model.block_label(b) for b in list(place)[::step]])
    panel.set_ylim(bottom=0)
    panel.set_xlabel("layer")
    panel.grid(color="#e6e6e6")
    panel.spines[["top", "right"]].set_visible(False)


def _phase(figure: Any, models: Sequence[ModelOutliers]) -> None:
    figure.suptitle("Reach of the most common outlier dimension of the hidden state", fontsize=13)
    sizes, perplexities = figure.subplots(1, 2, sharey=True)
    for panel, values, label in (
        (sizes, [float(m.parameters) for m in models], "parameters"),
        (perplexities, [m.perplexity for m in models], "perplexity on this text, falling"),
    ):
        order = sorted(range(len(models)), key=lambda i: values[i])
        for share, name, style in (("layers_share", "layers", "o-"), ("positions_share", "positions", "s--")):
            reach = [100 * getattr(models[i], share) for i in order]
            panel.plot([values[i] for i in order], reach, style, label=f"share of {name}", markersize=5)
        for rank, i in enumerate(order):
            panel.annotate(
                models[i].label[:24],
                (values[i], 100 * models[i].layers_share),
                xytext=(0, 7 + 12 * (rank % 3)),  # neighbours on lines of their own
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.set_ylim(-4, 125)
        panel.set_yticks(range(0, 101, 20))
        panel.margins(x=0.12)
        panel.grid(color="#e6e6e6")
        panel.spines[["top", "right"]].set_visible(False)
    counts = [count for count, _, _ in PAPER]
    hollow = {"facecolors": "none", "edgecolors": "#808080"}
    sizes.scatter(counts, [100 * p[1] for p in PAPER], marker="o", label="the paper, 6B and 6.7B", **hollow)
    sizes.scatter(counts, [100 * p[2] for p in PAPER], marker="s", **hollow)
    perplexities.invert_xaxis()
    sizes.set_ylabel("%")
    sizes.legend(frameon=False, fontsize=10)
