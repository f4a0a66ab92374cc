"""The picture: a row of panels for each workload, a bar for each candidate that loaded."""

from __future__ import annotations

import io

import pytest

from llmint8.bench.model import Cell, ModelBenchmark, Result, Workload, draw

MIB = 1 << 20
LOADS = [Workload(1, 100, 11), Workload(8, 100, 11)]
RESULTS = [
    Result("transformers float32", "float32", 1.5, 9, [Cell(2.0, 4.0, 3, 11.0, 50 * MIB), None]),
    Result("llmint8 fast", "int8", 0.5, 9, [Cell(0.5, 1.0, 3, 9.0, 20 * MIB), Cell(1.0, 2.0, 3, 9.0, None)]),
    Result("llama.cpp Q8_0", "gguf", failure="it is not here", cells=[None, None]),
]
FOUND = ModelBenchmark({"cpu": "a CPU", "threads": 2}, "a-model", LOADS, RESULTS)


def test_bars_are_the_results(monkeypatch):
    pytest.importorskip("matplotlib")
    import matplotlib.figure

    figures = []

    class Kept(matplotlib.figure.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Kept)
    draw(FOUND)
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == [
        "prompt tokens/s", "new tokens/s", "peak memory, MiB", "loading, s",
        "prompt tokens/s", "new tokens/s", "peak memory, MiB",
    ]  # fmt: skip
    widths = [[bar.get_width() for bar in panel.patches] for panel in panels]
    assert widths == [[50, 200], [2.5, 10], [50, 20], [1.5, 0.5], [0, 800], [0, 40], [0, 0]]
    labels = [text.get_text().strip() for text in panels[4].texts]
    assert labels == ["none", "800"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "transformers float32",
        "llmint8 fast",
    ]


def test_the_picture_is_1200_pixels_wide_and_not_blank():
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    image = imread(io.BytesIO(draw(FOUND)), format="png")
    assert image.shape[1] == 1200
    red = (image[..., 0] > 0.7) & (image[..., 1] < 0.25) & (image[..., 2] < 0.25)
    assert red.sum() > 500
