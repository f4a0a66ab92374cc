"""The HTML report: one file that asks nothing of a network and reads without scripts."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

import torch

from llmint8.analysis.inputs import InputGroup
from llmint8.analysis.outlier_report import charts
from llmint8.analysis.outlier_report.heatmap import DARKEST, bin_dimensions, colour, encode_png, scale_top
from llmint8.analysis.outlier_report.model import ModelOutliers, number, parameters, percent

#: The browser itself refuses what is not in the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
#: Height of a map, and the room that the label of a row needs, in pixels.
_MAP_HEIGHT, _LABEL_HEIGHT = 240, 13
_HEAD = (
    "largest",
    "beyond the first position",
    "outlier columns",
    "outlier elements",
    "positions with one",
)


def html_report(models: Sequence[ModelOutliers], text: str, tokens: int) -> str:
    """The report of one or more models. text: what they read. tokens: how much of it at most."""
    threshold = models[0].report.threshold
    body = [
        "<h1>Outliers in the inputs of linear layers</h1>",
        f'<p class="soft">{escape(text)}, {tokens:,} tokens. An outlier is an element with '
        f"|x| ≥ {threshold:g}; an outlier column has one at any position of the text.</p>",
    ]
    if len(models) > 1:
        body.append(_phase(models))
    for index, model in enumerate(models):
        body.append(_section(model, index))
    files = resources.files(__package__)
    style, script = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    names = ", ".join(model.label for model in models)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Outliers of {escape(names)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
{"".join(body)}
<div id="tip"></div>
<script>
{script}</script>
</body>
</html>
"""


def _phase(models: Sequence[ModelOutliers]) -> str:
    rows = (
        (
            escape(model.label),
            parameters(model.parameters),
            number(model.perplexity),
            str(len(model.report.shared)),
            percent(model.layers_share),
            percent(model.positions_share),
            number(model.largest),
        )
        for model in models
    )
    head = ("model", "parameters", "perplexity", "shared dimensions", "layers", "positions", "largest")
    return (
        "<h2>From model to model</h2>"
        "<p>How far the most common outlier dimension of the hidden state reaches: over the layers, and over "
        "the positions. Dashed circles: the models of 6B and 6.7B of the paper. Perplexities compare only "
        "where the tokenizer is the same.</p>"
        f'<div class="pair"><div>{charts.phase(models, "size")}</div>'
        f"<div>{charts.phase(models, 'perplexity')}</div></div>"
        f"{_legend(('layers', 'positions'))}{_table(head, rows)}"
    )


def _section(model: ModelOutliers, index: int) -> str:
    report = model.report
    top = scale_top(model.largest, report.threshold)
    groups = [group for group in report.groups if group.members[0].block is not None]
    parts = [
        f"<h2>{escape(model.name)}</h2>",
        f'<p class="soft">{parameters(model.parameters)} parameters, {len(report.blocks)} layers, perplexity '
        f"{number(model.perplexity)} on this text</p>",
        _criterion(model),
        _mostly(model),
        "<h3>By input</h3>",
        _groups(model),
        "<h3>Largest magnitude by layer and dimension</h3>",
        '<p class="soft">Rows are layers. Point at a map to read its values.</p>',
        _scale(report.threshold, top),
        *(_map(model, group, f"map-{index}-{i}", top) for i, group in enumerate(groups)),
    ]
    if report.dimensions:
        parts += [
            "<h3>Dimensions of the hidden state: coverage over layers</h3>",
            '<p class="soft">Share of the positions of each layer at which the dimension is an outlier, for '
            f"the {min(len(report.dimensions), charts.MATRIX_ROWS)} that are spread furthest.</p>",
            charts.matrix(model),
        ]
    if groups:
        parts += [
            '<div class="pair">',
            "<div><h3>Outlier columns</h3>",
            charts.by_block(model, "columns_share", "Outlier columns"),
            "</div><div><h3>Positions with an outlier</h3>",
            charts.by_block(model, "affected_share", "Positions with an outlier"),
            "</div></div>",
            _legend([group.name for group in groups]),
        ]
    if report.dimensions:
        parts.append(
            f'<div class="pair"><div><h3>Dimensions by reach</h3>{charts.plane(model)}</div>'
            f"<div><h3>The furthest spread</h3>{_dimensions(model)}</div></div>"
        )
    parts.append(_layers(model))
    return "\n".join(parts)


def _criterion(model: ModelOutliers) -> str:
    report = model.report
    if report.hidden_size is None:
        return "<p>No layer reads the output of a norm, so the paper's criterion cannot be applied.</p>"
    if report.shared:
        names = ", ".join(str(d.index) for d in report.shared)
        found = f'<span class="hot">{len(report.shared)}: {names}</span>'
    else:
        found = "none"
    return (
        f"<p>Dimensions of the hidden state (of {report.hidden_size:,}) that meet the paper's criterion, "
        f"outliers in at least 25 % of the layers and 6 % of the positions: {found}.</p>"
    )


def _mostly(model: ModelOutliers) -> str:
    names = escape(", ".join(layer.name for layer in model.report.mostly_outliers))
    return (
        f'<p><span class="hot">More than half of the columns are outliers in</span> {names}.</p>'
        if names
        else ""
    )


def _groups(model: ModelOutliers) -> str:
    rows = []
    for group in model.report.groups:
        later = [m.largest_later for m in group.members if m.largest_later is not None]
        worst = model.block_label(group.worst.block)
        rows.append(
            (
                escape(group.name),
                number(group.largest.largest),
                number(max(later)) if later else "",
                f"{percent(group.mean('columns_share'))}, worst {percent(group.worst.columns_share)}"
                + (f" in layer {escape(worst)}" if worst else ""),
                percent(group.mean("elements_share")),
                percent(group.mean("affected_share")),
            )
        )
    return _table(("input of", *_HEAD), rows)


def _dimensions(model: ModelOutliers) -> str:
    rows = (
        (
            str(d.index) + (" (shared)" if d.shared else ""),
            percent(d.layers),
            percent(d.positions),
            number(d.largest),
        )
        for d in model.report.dimensions[: charts.MATRIX_ROWS]
    )
    return _table(("dimension", "layers", "positions", "largest"), rows)


def _layers(model: ModelOutliers) -> str:
    rows = (
        (
            escape(layer.name),
            f"{number(layer.largest)} at {layer.largest_dimension}, position {layer.largest_position}",
            "" if layer.largest_later is None else number(layer.largest_later),
            f"{layer.columns:,} of {layer.features:,}, {percent(layer.columns_share)}",
            percent(layer.elements_share),
            percent(layer.affected_share),
        )
        for layer in model.report.layers
    )
    table = _table(("layer", *_HEAD), rows)
    return f"<details><summary>All {len(model.report.layers)} layers</summary>{table}</details>"


def _map(model: ModelOutliers, group: InputGroup, identity: str, top: float) -> str:
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


def _scale(threshold: float, top: float) -> str:
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


def _legend(names: Iterable[str]) -> str:
    items = "".join(f'<span class="s{i % 6}"><i></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
