"""The heat maps of the HTML report: a picture, its labels, and its values for the pointer."""

from __future__ import annotations

import base64
import json
import math
from html import escape

import torch

from llmint8.analysis.inputs import InputGroup
from llmint8.analysis.outlier_report.heatmap import DARKEST, bin_dimensions, colour, encode_png
from llmint8.analysis.outlier_report.model import ModelOutliers, number

#: Height of a map, and the room that the label of a row needs, in pixels.
_MAP_HEIGHT, _LABEL_HEIGHT = 240, 13


def heat_map(model: ModelOutliers, group: InputGroup, identity: str, top: float) -> str:
    """The inputs of a group, layers down and dimensions across. identity: of its values in the page."""
    binned = bin_dimensions(group.magnitude)
    rows = len(group.blocks)
    labels = [model.block_label(block) for block in group.blocks]
    step = math.ceil(rows * _LABEL_HEIGHT / _MAP_HEIGHT)
    spans = "".join(
        f'<span style="top:{(i + 0.5) / rows:.2%}">{escape(label)}</span>'
        for i, label in enumerate(labels)
        if i % step == 0
    )
    features = group.members[0].features
    ticks = "".join(f"<span>{round(i * (features - 1) / 8)}</span>" for i in range(9))
    values = {
        "blocks": labels,
        "width": binned.width,
        "dimension": binned.at.tolist(),
        "largest": [[float(f"{v:.4g}") for v in row] for row in binned.values.tolist()],
    }
    pixels = _image(encode_png(colour(binned.values, model.report.threshold, top)))
    kind = "the hidden state" if group.hidden else f"{features:,} dimensions"
    data = json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<h3>{escape(group.name)} <span class="soft">reads {kind}</span></h3><figure class="map">'
        f'<div class="rows"><b>{escape(max(labels, key=len))}</b>{spans}</div>'
        f'<img {pixels} alt="Largest magnitudes, {rows} layers by {features} dimensions" '
        f'style="height:{_MAP_HEIGHT}px" data-values="{identity}"><div class="ticks">{ticks}</div></figure>'
        f'<script type="application/json" id="{identity}">{data}</script>'
    )


def colour_scale(threshold: float, top: float) -> str:
    """What the colours mean, from the darkest to `top`."""
    steps = torch.linspace(math.log(threshold * DARKEST), math.log(top), 200).exp().unsqueeze(0)
    pixels = _image(encode_png(colour(steps, threshold, top)))
    at = math.log(1 / DARKEST) / math.log(top / threshold / DARKEST)
    return (
        f'<div class="scale"><div><img {pixels} alt="Colour scale"></div></div>'
        f'<div class="scale"><div><span>{number(threshold * DARKEST)}</span>'
        f'<span style="position:absolute;left:{at:.1%};transform:translateX(-50%)">{threshold:g}</span>'
        f"<span>{number(top)}</span></div></div>"
    )


def _image(png: bytes) -> str:
    return f'src="data:image/png;base64,{base64.b64encode(png).decode()}"'
