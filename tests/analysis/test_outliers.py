"""The paper's criterion on statistics that are written down, and on a model with planted outliers."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from llmint8.analysis import InputStatistics, OutlierRecorder, analyze
from llmint8.convert import plan_conversion
from llmint8.errors import InputError


def statistics(
    features: int, positions: int, outliers: dict[int, int], normalized: bool = True, rest: float = 1.0
) -> InputStatistics:
    """A dimension with `n` outliers has them, of magnitude 10 + dimension, in the first
    n positions; all else is `rest`."""
    found = InputStatistics(features, torch.device("cpu"))
    x = torch.full((positions, features), rest)
    for dimension, count in outliers.items():
        x[:count, dimension] = 10.0 + dimension
    found.add(x, 6.0)
    found.normalized = normalized
    return found


def model_of(
    blocks: list[dict[int, int]], positions: int = 100, features: int = 8
) -> dict[str, InputStatistics]:
    """Statistics of blocks whose attention reads outliers as given and whose other layers read none."""
    found = {}
    for index, outliers in enumerate(blocks):
        name = f"model.layers.{index}"
        for projection in ("q_proj", "k_proj"):
            found[f"{name}.attn.{projection}"] = statistics(features, positions, outliers)
        found[f"{name}.attn.o_proj"] = statistics(features, positions, {7: positions}, normalized=False)
        found[f"{name}.mlp.up_proj"] = statistics(features, positions, {}, rest=2.0)
        found[f"{name}.mlp.down_proj"] = statistics(12, positions, {}, normalized=False)
    return found


def test_a_dimension_at_the_limits_is_shared():
    """2 of 8 blocks are 25 %; 96 of 8 · 2 · 100 positions are 6 %."""
    report = analyze(model_of([{3: 48}, {3: 48}] + [{}] * 6), 6.0)
    (dimension,) = report.shared
    assert vars(dimension) == {"index": 3, "layers": 0.25, "positions": 0.06, "largest": 13.0, "shared": True}
    assert report.widest is dimension
    assert (report.hidden_size, len(report.blocks)) == (8, 8)


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([{3: 96}] + [{}] * 7, "one block of eight"),
        ([{3: 48}, {3: 47}] + [{}] * 6, "one position too few"),
        ([{3: 100}, {4: 100}] + [{}] * 6, "not the same dimension"),
    ],
)
def test_a_dimension_below_one_of_the_limits_is_not(blocks, why):
    report = analyze(model_of(blocks), 6.0)
    assert report.shared == ()
    assert report.widest.index == 3


def test_only_hidden_states_count():
    """The inputs of o_proj hold an outlier at every position, in a dimension of their own."""
    report = analyze(model_of([{}] * 4), 6.0)
    assert report.dimensions == ()
    assert report.widest is None
    assert [g.name for g in report.groups if g.hidden] == ["attn.q_proj, k_proj", "mlp.up_proj"]


def test_shared_dimensions_come_first_and_by_reach():
    report = analyze(model_of([{0: 1, 2: 40, 5: 100}, {0: 1, 2: 40, 5: 100}, {0: 1, 5: 100}, {0: 1}]), 6.0)
    assert [d.index for d in report.dimensions] == [5, 2, 0]
    assert [(d.layers, d.positions, d.shared) for d in report.dimensions] == [
        (0.75, 300 / 800, True),
        (0.5, 80 / 800, True),
        (1.0, 4 / 800, False),
    ]


def test_numbers_of_a_layer():
    report = analyze({"model.layers.11.attn.q_proj": statistics(8, 50, {1: 5, 4: 2})}, 6.0)
    (layer,) = report.layers
    assert (layer.block, layer.projection) == ("model.layers.11", "attn.q_proj")
    assert (layer.largest, layer.largest_dimension, layer.largest_position) == (14.0, 4, 0)
    assert layer.largest_later == 14.0
    assert (layer.columns, layer.elements, layer.affected) == (2, 7, 5)
    assert (layer.columns_share, layer.elements_share, layer.affected_share) == (2 / 8, 7 / 400, 5 / 50)


def test_groups_gather_what_reads_the_same_input():
    report = analyze(model_of([{1: 10}, {1: 20, 2: 5}]), 6.0)
    names = [group.name for group in report.groups]
    assert names == ["attn.q_proj, k_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    group = report.groups[0]
    assert group.blocks == ("model.layers.0", "model.layers.1")
    assert group.count.tolist() == [[0, 10, 0, 0, 0, 0, 0, 0], [0, 20, 5, 0, 0, 0, 0, 0]]
    assert group.magnitude[1].tolist() == [1, 11, 12, 1, 1, 1, 1, 1]
    assert group.worst.name == group.largest.name == "model.layers.1.attn.q_proj"
    assert group.mean("columns_share") == (1 / 8 + 2 / 8) / 2


def test_layers_of_mostly_outliers_are_named():
    report = analyze(model_of([dict.fromkeys(range(5), 1), dict.fromkeys(range(4), 1)]), 6.0)
    assert [layer.name for layer in report.mostly_outliers] == [
        "model.layers.0.attn.q_proj",
        "model.layers.0.attn.k_proj",
    ]


def test_names_without_blocks_and_with_numbers_of_their_own():
    names = ["project_in", "layers1.fc", "h.0.experts.5.w1", "h.0.experts.6.w1", "0.fc"]
    report = analyze({name: statistics(4, 3, {}) for name in names}, 6.0)
    assert [(layer.block, layer.projection) for layer in report.layers] == [
        (None, "project_in"),
        (None, "layers1.fc"),
        ("h.0", "experts.*.w1"),
        ("h.0", "experts.*.w1"),
        ("0", "fc"),
    ]
    experts = next(group for group in report.groups if group.projections == ("experts.*.w1",))
    assert (experts.blocks, experts.positions) == (("h.0",), (6,))


def test_json_holds_everything_but_the_tensors():
    report = analyze(model_of([{3: 48}, {3: 48}] + [{}] * 6), 6.0)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["shared_dimensions"] == [
        {"index": 3, "layers": 0.25, "positions": 0.06, "largest": 13.0, "shared": True}
    ]
    assert found["inputs"][0]["projections"] == ["attn.q_proj", "attn.k_proj"]
    assert len(found["layers"]) == 8 * 5


def test_a_model_with_a_planted_dimension():
    """A norm weight of 64 makes its dimension an outlier wherever the hidden state is above 6/64."""
    model = tiny.tiny_llama(num_hidden_layers=4)
    for block in model.model.layers:
        block.input_layernorm.weight.data[5] = 64.0
    ids = torch.arange(40).unsqueeze(0)
    seen = []
    for block in model.model.layers:
        block.input_layernorm.register_forward_hook(lambda m, a, output: seen.append(output[0].detach()))
    names = plan_conversion(model, None).convert
    with torch.inference_mode(), OutlierRecorder(model, names) as recorder:
        model(ids)
    report = analyze(recorder.statistics, recorder.threshold)
    affected = torch.stack(seen)[..., 5].abs() >= 6
    (dimension,) = report.shared
    assert dimension.index == 5
    assert dimension.layers == affected.any(1).float().mean()
    assert dimension.positions == int(affected.sum()) / (2 * affected.numel())
    assert dimension.largest == torch.stack(seen)[..., 5].abs().max()


def test_what_it_refuses():
    with pytest.raises(InputError, match="no layer was called"):
        analyze({}, 6.0)
    broken = statistics(4, 3, {})
    broken.add(torch.tensor([[1.0, float("nan"), 2.0, 3.0]]), 6.0)
    with pytest.raises(InputError, match=r"the input of a\.0\.fc holds a NaN"):
        analyze({"a.0.fc": broken}, 6.0)
