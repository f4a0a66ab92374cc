"""The picture: a PNG with a panel for each layer and a line for each candidate."""

from __future__ import annotations

import io

import pytest

from llmint8.bench import Benchmark, Limits, Point, draw

NAMES = ("llmint8 6.0", "llmint8 auto", "llmint8 0", "llmint8 6.0, 1 %", "float32", "bfloat16", "float16")


def benchmark(layers, rows=(1, 16)):
    points = [
        Point(k, n, m, {name: (i + 1) * k * n * m / 1e9 for i, name in enumerate(NAMES)})
        for k, n in layers
        for m in rows
    ]
    return Benchmark(
        {"cpu": "a CPU", "threads": 2, "torch": "2", "kernels": "native"}, Limits(2e10, 1e11), points
    )


def pixels(png):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")


@pytest.mark.parametrize("layers", [[(64, 32)], [(64, 32), (32, 64), (16, 16)]], ids=["one", "three"])
def test_the_picture_is_not_blank(layers):
    image = pixels(draw(benchmark(layers)))
    height, width = image.shape[:2]
    assert min(height, width) > 500
    dark = (image[..., :3].sum(axis=2) < 2.5).mean()
    assert 0.005 < dark < 0.5
    red = (image[..., 0] > 0.7) & (image[..., 1] < 0.25) & (image[..., 2] < 0.25)
    assert red.sum() > 500  # ours


def test_one_number_of_rows_is_drawn_too():
    red = pixels(draw(benchmark([(64, 32)], rows=(16,))))
    assert ((red[..., 0] > 0.7) & (red[..., 1] < 0.25)).sum() > 30


def test_panels_and_lines(monkeypatch):
    figures = []
    pytest.importorskip("matplotlib")
    import matplotlib.figure

    class Kept(matplotlib.figure.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Kept)
    draw(benchmark([(64, 32), (32, 64), (16, 16)]))
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ["K×N = 64×32", "K×N = 32×64", "K×N = 16×16"]
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    assert len(lines) == len(NAMES) + 1
    assert list(lines["llmint8 6.0"].get_xdata()) == [1, 16]
    assert list(lines["llmint8 6.0"].get_ydata()) == pytest.approx([2.0, 2.0])
    assert list(lines["torch float32"].get_ydata()) == pytest.approx([0.4, 0.4])
    limit = lines["limit: memory or int8"].get_ydata()
    assert (limit[0], limit[-1]) == pytest.approx((40.0, 100.0))
    assert {panel.get_xscale() + panel.get_yscale() for panel in panels} == {"loglog"}
