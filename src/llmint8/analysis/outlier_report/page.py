"""The HTML report: one file that asks nothing of a network and reads without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from llmint8.analysis.outlier_report import charts, tables
from llmint8.analysis.outlier_report.heatmap import scale_top
from llmint8.analysis.outlier_report.maps import colour_scale, heat_map
from llmint8.analysis.outlier_report.model import ModelOutliers, number, parameters

#: The browser itself refuses what is not in the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


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
    return (
        "<h2>From model to model</h2>"
        "<p>How far the most common outlier dimension of the hidden state reaches: over the layers, and over "
        "the positions. Dashed circles: the models of 6B and 6.7B of the paper. Perplexities compare only "
        "where the tokenizer is the same.</p>"
        f'<div class="pair"><div>{charts.phase(models, "size")}</div>'
        f"<div>{charts.phase(models, 'perplexity')}</div></div>"
        f"{_legend(('layers', 'positions'))}{tables.comparison(models)}"
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
        tables.inputs(model),
        "<h3>Largest magnitude by layer and dimension</h3>",
        '<p class="soft">Rows are layers. Point at a map to read its values.</p>',
        colour_scale(report.threshold, top),
        *(heat_map(model, group, f"map-{index}-{i}", top) for i, group in enumerate(groups)),
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
            f"<div><h3>The furthest spread</h3>{tables.dimensions(model, charts.MATRIX_ROWS)}</div></div>"
        )
    parts.append(tables.layers(model))
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
    found = model.mostly_outliers.items()
    names = "; ".join(name + (f" of layer {blocks}" if blocks else "") for name, blocks in found)
    what = "More than half of the columns are outliers"
    return f'<p><span class="hot">{what}:</span> {escape(names)}.</p>' if names else ""


def _legend(names: Iterable[str]) -> str:
    items = "".join(f'<span class="s{i % 6}"><i></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'
