"""The charts of the HTML report, as inline SVG. Colours are classes, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from llmint8.analysis.outlier_report.model import ModelOutliers, number, parameters, percent
from llmint8.analysis.outliers import LAYER_SHARE, POSITION_SHARE

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 28, 44
#: Dimensions in the matrix of coverage, and those with a label in the plane.
MATRIX_ROWS, _LABELS = 12, 8
#: What the text of section 4.2 of the paper says of its two models around the phase shift:
#: parameters, share of layers, share of positions.
PAPER = ((6_000_000_000, 0.65, 0.35), (6_700_000_000, 1.0, 0.75))


@dataclass(frozen=True)
class _Axis:
    """From a value to pixels. ticks: values and their labels."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: Sequence[tuple[float, str]]

    def __call__(self, value: float) -> float:
        of: Callable[[float], float] = math.log if self.log else float
        share = (of(max(value, self.low)) - of(self.low)) / ((of(self.high) - of(self.low)) or 1)
        return self.start + share * (self.end - self.start)


def by_block(model: ModelOutliers, share: str, title: str) -> str:
    """A line for each input: a share over the blocks."""
    groups = [group for group in model.report.groups if group.members[0].block is not None]
    top = max((getattr(m, share) for group in groups for m in group.members), default=0.0)
    place = {block: i for i, block in enumerate(model.report.blocks)}
    x = _across([model.block_label(block) for block in place])
    y = _shares(min(1.0, max(top, 0.01)))
    parts = [_frame(x, y, "layer", "")]
    for index, group in enumerate(groups):
        worst: dict[str, float] = {}
        for member in group.members:
            block = member.block or ""
            worst[block] = max(worst.get(block, 0.0), getattr(member, share))
        path = " ".join(f"{x(place[block]):.1f},{y(value):.1f}" for block, value in worst.items())
        parts.append(f'<polyline class="line s{index % 6}" points="{path}"/>')
        for block, value in worst.items():
            tip = f"{group.name}, layer {model.block_label(block)}: {percent(value)}"
            parts.append(_dot(f"s{index % 6}", x(place[block]), y(value), 3, tip))
    return _svg(title, parts)


def plane(model: ModelOutliers) -> str:
    """Every outlier dimension by the share of layers and of positions that it reaches, and the criterion."""
    report = model.report
    positions = sum(sum(group.positions) for group in report.groups if group.hidden)
    low = 1 / max(positions, 10)
    ticks = [(10.0**e, percent(10.0**e)) for e in range(math.floor(math.log10(low)) + 1, 1)]
    y = _Axis(low, 1, _HEIGHT - _BOTTOM, _TOP, True, ticks)
    x = _Axis(0, 1, _LEFT, _WIDTH - _RIGHT, False, [(i / 4, f"{i * 25} %") for i in range(5)])
    title = "Dimensions of the hidden state by reach"
    parts = [_frame(x, y, "share of layers", "positions")]
    corner = x(LAYER_SHARE), y(1)
    size = x(1) - corner[0], y(POSITION_SHARE) - corner[1]
    parts.append(
        f'<rect class="criterion" x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" '
        f'height="{size[1]:.1f}"/><text class="note" x="{corner[0] + 6:.1f}" y="{corner[1] + 16:.1f}">'
        "the paper's criterion</text>"
    )
    for rank, dimension in enumerate(report.dimensions):
        px, py = x(dimension.layers), y(dimension.positions)
        tip = (
            f"dimension {dimension.index}: {percent(dimension.layers)} of the layers, "
            f"{percent(dimension.positions)} of the positions, largest {number(dimension.largest)}"
        )
        kind = "shared" if dimension.shared else "s0"
        parts.append(_dot(kind, px, py, 4.5, tip))
        if rank < _LABELS:
            left = px > _WIDTH - 60
            anchor = ' text-anchor="end"' if left else ""
            parts.append(
                f'<text x="{px + (-8 if left else 8):.1f}" y="{py + 4:.1f}"{anchor}>{dimension.index}</text>'
            )
    return _svg(title, parts)


def phase(models: Sequence[ModelOutliers], by: str) -> str:
    """Reach of the most common outlier dimension over the size of models, or over their perplexity."""
    size = by == "size"
    values = [float(m.parameters) if size else m.perplexity for m in models]
    known = [*values, *(float(p[0]) for p in PAPER)] if size else values
    low, high = min(known) / 1.3, max(known) * 1.3
    start, end = _LEFT + 20.0, float(_WIDTH - _RIGHT - 20)
    ticks = [(v, parameters(int(v)) if size else number(v)) for v in _decades(low, high)]
    # Better models to the right in both: perplexity falls.
    x = _Axis(low, high, *((start, end) if size else (end, start)), True, ticks)
    y = _shares(1.0)
    title = "Phase transition by model size" if size else "Phase transition by perplexity"
    parts = [_frame(x, y, "parameters" if size else "perplexity on this text, falling", "")]
    order = sorted(range(len(models)), key=lambda i: x(values[i]))
    for kind, (name, share) in enumerate((("layers", "layers_share"), ("positions", "positions_share"))):
        points = [(x(values[i]), y(getattr(models[i], share)), models[i]) for i in order]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        parts.append(f'<polyline class="line s{kind}" points="{path}"/>')
        for px, py, model in points:
            tip = f"{model.label}: {percent(getattr(model, share))} of the {name}"
            parts.append(_dot(f"s{kind}", px, py, 5, tip))
    parts += _labels([(x(values[i]), y(models[i].layers_share), models[i].label[:24]) for i in order])
    for count, layers, positions in PAPER if size else ():
        for reach, name in ((layers, "layers"), (positions, "positions")):
            tip = f"the paper, {parameters(count)}: {percent(reach)} of the {name}"
            parts.append(_dot("paper", x(count), y(reach), 5, tip))
    return _svg(title, parts)


def _labels(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Labels above points from left to right; one that would meet an earlier one goes a line higher."""
    taken: list[tuple[float, float, float]] = []
    parts = []
    for x, y, text in points:
        half = 3.6 * len(text)
        middle = min(max(x, _LEFT + half), _WIDTH - half)
        line = max(y - 10, 12.0)
        while any(
            abs(line - other) < 13 and middle - half < end and start < middle + half
            for start, end, other in taken
        ):
            line += -13 if y > _TOP + 13 * len(points) else 13
        taken.append((middle - half, middle + half, line))
        parts.append(f'<text text-anchor="middle" x="{middle:.1f}" y="{line:.1f}">{escape(text)}</text>')
    return parts


def matrix(model: ModelOutliers) -> str:
    """The furthest spread dimensions by layer: how much of the positions each reaches there."""
    hidden = [group for group in model.report.groups if group.hidden]
    rows = model.report.dimensions[:MATRIX_ROWS]
    blocks = list(dict.fromkeys(block for group in hidden for block in group.blocks))
    cell, left = 18, 64
    width = (2 * _WIDTH - left - 4) / len(blocks)
    parts = []
    for row, dimension in enumerate(rows):
        y = row * cell
        parts.append(f'<text text-anchor="end" x="{left - 8}" y="{y + 13}">{dimension.index}</text>')
        for column, block in enumerate(blocks):
            count = positions = 0
            for group in hidden:
                if block in group.blocks:
                    at = group.blocks.index(block)
                    count += int(group.count[at, dimension.index])
                    positions += group.positions[at]
            share = count / positions
            where = f"dimension {dimension.index}, layer {model.block_label(block)}"
            # A square root, so that a reach of 1 % is seen; what is affected at all is at least pale.
            opacity = 0 if not count else 0.15 + 0.85 * math.sqrt(share)
            parts.append(
                f'<g><rect class="cell" x="{left + column * width:.1f}" y="{y}" width="{width - 1:.1f}" '
                f'height="{cell - 1}"/><rect class="heat" style="opacity:{opacity:.2f}" '
                f'x="{left + column * width:.1f}" y="{y}" width="{width - 1:.1f}" height="{cell - 1}"/>'
                f"<title>{escape(where)}: {percent(share)} of the positions</title></g>"
            )
    bottom = len(rows) * cell + 14
    step = math.ceil(len(blocks) / 32)
    for column, block in enumerate(blocks):
        if column % step == 0:
            at_x = left + (column + 0.5) * width
            label = escape(model.block_label(block))
            parts.append(f'<text text-anchor="middle" x="{at_x:.1f}" y="{bottom}">{label}</text>')
    parts.append(f'<text class="axis" text-anchor="end" x="{left - 8}" y="{bottom}">layer</text>')
    return _svg("Coverage over layers", parts, 2 * _WIDTH, bottom + 6)


def _across(labels: Sequence[str]) -> _Axis:
    step = max(1, math.ceil(len(labels) / 12))
    ticks = [(float(i), label) for i, label in enumerate(labels) if i % step == 0]
    return _Axis(0, max(len(labels) - 1, 1), _LEFT + 8, _WIDTH - _RIGHT - 4, False, ticks)


def _shares(top: float) -> _Axis:
    step = next(s for s in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if top / s <= 5.01)
    high = step * math.ceil(top / step - 1e-9)
    ticks = [(i * step, percent(i * step)) for i in range(round(high / step) + 1)]
    return _Axis(0, high, _HEIGHT - _BOTTOM, _TOP, False, ticks)


def _decades(low: float, high: float) -> list[float]:
    """Round values between two others, few enough for an axis."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [s * 10.0**e for e in exponents for s in steps if low <= s * 10.0**e <= high]
        if len(found) <= 7:
            break
    return found if len(found) > 1 else [low, math.sqrt(low * high), high]


def _frame(x: _Axis, y: _Axis, below: str, beside: str) -> str:
    lines = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text text-anchor="end" x="{_LEFT - 6}" y="{y(v) + 4:.1f}">{label}</text>'
        for v, label in y.ticks
    ]
    lines += [
        f'<text text-anchor="middle" x="{x(v):.1f}" y="{_HEIGHT - _BOTTOM + 18}">{escape(label)}</text>'
        for v, label in x.ticks
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text class="axis" text-anchor="middle" x="{middle}" y="{_HEIGHT - 6}">{below}</text>')
    if beside:
        lines.append(f'<text class="axis" x="4" y="{_HEIGHT - 6}">{beside} ↑</text>')
    return "".join(lines)


def _dot(kind: str, x: float, y: float, radius: float, tip: str) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle class="dot {kind}" {place}><title>{escape(tip)}</title></circle>'


def _svg(title: str, parts: Sequence[str], width: int = _WIDTH, height: int = _HEIGHT) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">\n{body}\n</svg>'
