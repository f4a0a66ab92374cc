"""The reports: maps that lose no outlier, a page that is whole in one file, a picture that shows them."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

from llmint8.analysis import InputStatistics, analyze
from llmint8.analysis.outlier_report import (
    ModelOutliers,
    draw_outliers,
    html_report,
    number,
    parameters,
    percent,
)
from llmint8.analysis.outlier_report.heatmap import MAX_BINS, bin_dimensions, colour, encode_png

VOID = {"meta", "link", "img", "br"}


def model(name: str, blocks: int = 3, features: int = 8, shared: int = 2, size: int = 135_000_000):
    """A model whose attention reads an outlier in dimension `shared`, and in others here and there."""
    statistics = {}
    for index in range(blocks):
        for projection, normalized in (("q_proj", True), ("o_proj", False), ("up_proj", True)):
            torch.manual_seed(index)
            x = torch.rand(20, features)
            if projection == "q_proj":
                x[:, shared] = 50.0 + index
                x[0, index % features] = 7.0
            found = InputStatistics(features, torch.device("cpu"))
            found.add(x if projection != "up_proj" else x / 2, 6.0)
            found.normalized = normalized
            statistics[f"model.layers.{index}.{projection}"] = found
    return ModelOutliers(name, size, 12.5, analyze(statistics, 6.0))


class Page(HTMLParser):
    """A page taken apart; fails for a tag that is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def values_of(page: str) -> list[dict]:
    return [
        json.loads(data) for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    ]


@pytest.mark.parametrize("features", [1, 8, MAX_BINS, MAX_BINS + 1, 576, 8192])
def test_bins_keep_every_maximum(features):
    torch.manual_seed(features)
    magnitude = torch.rand(3, features)
    binned = bin_dimensions(magnitude)
    assert binned.values.shape[1] == -(-features // binned.width) <= MAX_BINS
    assert torch.equal(binned.values, magnitude.gather(1, binned.at))
    for column in range(binned.values.shape[1]):
        of_bin = magnitude[:, column * binned.width : (column + 1) * binned.width]
        assert torch.equal(binned.values[:, column], of_bin.amax(1))


def test_colours_jump_at_the_threshold_and_brighten():
    pixels = colour(torch.tensor([0.0, 0.01, 1.0, 5.99, 6.0, 100.0, 1000.0]), 6.0, 1000.0).astype(int)
    assert pixels[0].tolist() == pixels[1].tolist() == [10, 14, 30]
    assert pixels[4].tolist() == [226, 88, 34]
    assert pixels[6].tolist() == [255, 246, 190]
    red = pixels[:, 0]
    assert red[3] < 60 < 200 < red[4]
    assert sorted(pixels.sum(1)[:4]) == list(pixels.sum(1)[:4])
    assert sorted(pixels.sum(1)[4:]) == list(pixels.sum(1)[4:])


def test_png_round_trip():
    image = pytest.importorskip("matplotlib.image")
    pixels = (torch.arange(5 * 7 * 3).reshape(5, 7, 3) % 251).to(torch.uint8).numpy()
    read = image.imread(io.BytesIO(encode_png(pixels)), format="png")
    assert ((read * 255).round().astype("uint8") == pixels).all()


@pytest.mark.parametrize(("blocks", "features"), [(1, 4), (3, 8), (40, 1000)])
def test_the_page_holds_every_layer_and_dimension(blocks, features):
    tested = model("a/model", blocks, features)
    page = html_report([tested], "a text", 20)
    parsed = Page(page)
    for layer in tested.report.layers:
        assert layer.name in parsed.text
    maps = values_of(page)
    assert len(maps) == 3
    for values, group in zip(maps, tested.report.groups, strict=True):
        assert values["blocks"] == [str(i) for i in range(blocks)]
        assert values["width"] * len(values["largest"][0]) >= features
        largest = [value for row in values["largest"] for value in row]
        assert max(largest) == pytest.approx(float(group.magnitude.max()), rel=1e-3)
    assert [d for row in maps[0]["dimension"] for d in row].count(2) == blocks
    assert "meet the paper's criterion" in parsed.text


def test_the_page_asks_nothing_of_a_network():
    page = html_report([model("m", 4, 600), model("n")], "a text", 20)
    assert "://" not in page
    assert "@import" not in page
    assert "url(" not in page
    for tag, attributes in Page(page).tags:
        if tag in ("script", "link", "img", "iframe", "object"):
            target = attributes.get("src") or attributes.get("href") or "data:"
            assert target.startswith("data:")
    assert "default-src 'none'" in page


def test_pictures_in_the_page_are_the_maps():
    image = pytest.importorskip("matplotlib.image")
    page = html_report([model("m", 3, 8)], "a text", 20)
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="Largest', page)
    first = image.imread(io.BytesIO(base64.b64decode(pictures[0])), format="png")
    assert first.shape[:2] == (3, 8)
    bright = first[..., 0] > 0.8
    assert bright[:, 2].all()  # the shared dimension, in every layer
    assert bright.sum() == 3 + 2  # and 7.0 in dimensions 0 and 1


def test_names_are_escaped():
    page = html_report([model("<b>&")], "<i>text", 20)
    assert "<b>&" not in page
    assert "<i>text" not in page
    assert "<b>&" in Page(page).text


def test_several_models_are_compared():
    models = [model(f"m{i}", size=10**i, shared=i % 8) for i in range(6, 10)]
    parsed = Page(html_report(models, "a text", 20))
    assert "From model to model" in parsed.text
    for m in models:
        assert f"{m.label}: 100 % of the layers" in parsed.text
    assert "the paper, 6.7B: 75 % of the positions" in parsed.text
    assert "From model to model" not in Page(html_report(models[:1], "a text", 20)).text


def test_a_model_without_outliers_or_blocks():
    found = InputStatistics(4, torch.device("cpu"))
    found.add(torch.ones(3, 4), 6.0)
    found.normalized = False
    plain = ModelOutliers("plain", 10, 5.0, analyze({"project": found}, 6.0))
    assert "the paper's criterion cannot be applied" in Page(html_report([plain], "a text", 3)).text
    assert draw_outliers([plain])[:4] == b"\x89PNG"


def test_the_picture_shows_the_maps():
    image = pytest.importorskip("matplotlib.image")
    one = image.imread(io.BytesIO(draw_outliers([model("m", 5, 700)])), format="png")
    assert one.shape[1] == 1800
    orange = (one[..., 0] > 0.85) & (one[..., 2] < 0.5) & (one[..., 1] > 0.3)
    assert orange.sum() > 1000
    assert 0.01 < (one[..., :3].sum(2) < 1).mean() < 0.7
    two = image.imread(io.BytesIO(draw_outliers([model("m", 5), model("n", 5)])), format="png")
    assert two.shape[0] > 2 * one.shape[0]


def test_the_page_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    assert Page(html_report([model("m")], "a text", 20)).tags


def test_numbers_as_people_read_them():
    assert [percent(s) for s in (0, 1, 0.5, 0.1234, 0.00123, 1e-5)] == [
        "0 %",
        "100 %",
        "50 %",
        "12 %",
        "0.12 %",
        "0.001 %",
    ]
    assert [number(v) for v in (0, 5.714, 31.25, 2925.4, 12345)] == ["0", "5.71", "31.2", "2,925", "12,345"]
    assert [parameters(c) for c in (10, 32_000, 134_515_008, 6_700_000_000)] == ["10", "32K", "135M", "6.7B"]


def test_blocks_of_mostly_outliers_are_ranges():
    statistics = {}
    for index in (0, 2, 3, 4, 7, 8):
        found = InputStatistics(4, torch.device("cpu"))
        found.add(torch.full((3, 4), 9.0), 6.0)
        statistics[f"layers.{index}.down_proj"] = found
    tested = ModelOutliers("m", 10, 5.0, analyze(statistics, 6.0))
    assert tested.mostly_outliers == {"down_proj": "0, 2 to 4, 7, 8"}
