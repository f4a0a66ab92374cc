"""The recorder counts exactly what goes in, and a model that it watches computes the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from llmint8 import Int8Config, quantize_model
from llmint8.analysis import OutlierRecorder
from llmint8.convert import plan_conversion
from llmint8.errors import InputError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def planted(positions: int, features: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small noise with 8.0 at (0, 1), -100.0 at (3, 1) and exactly 6.0 at (3, 2)."""
    torch.manual_seed(0)
    x = torch.rand(positions, features).mul(5).to(dtype)
    x[0, 1], x[3, 1], x[3, 2] = 8, -100, 6
    return x


def layer(features: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 3, dtype=dtype))


def ids(count: int, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (batch, count))


@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_outliers_are_counted_exactly(dtype):
    x = planted(5, 7, dtype)
    model = layer(7, dtype)
    with OutlierRecorder(model, ["0"]) as recorder:
        model(x)
    found = recorder.statistics["0"]
    assert (found.positions, found.affected, found.features) == (5, 2, 7)
    assert found.count.tolist() == [0, 2, 1, 0, 0, 0, 0]
    assert found.position_count.tolist() == [1, 0, 0, 2, 0]
    assert torch.equal(found.magnitude, x.abs().amax(0).float())
    assert torch.equal(found.position_magnitude, x.abs().amax(1).float())


@pytest.mark.parametrize("positions", [1, 255, 256, 257, 600])
def test_blocks_and_batches_add_up(positions):
    torch.manual_seed(positions)
    x = torch.randn(3, positions, 9) * 4
    model = layer(9)
    with OutlierRecorder(model, ["0"], 6.3) as recorder:
        model(x)
    found, outliers = recorder.statistics["0"], x.abs() >= torch.tensor(6.3)
    assert torch.equal(found.count, outliers.sum((0, 1)))
    assert torch.equal(found.position_count, outliers.sum((0, 2)))
    assert torch.equal(found.magnitude, x.abs().amax((0, 1)))
    assert torch.equal(found.position_magnitude, x.abs().amax((0, 2)))
    assert found.affected == int(outliers.any(2).sum())
    assert found.positions == 3 * positions


def test_a_threshold_is_not_rounded_to_16_bits():
    """6.3 in bfloat16 is 6.3125; 6.3125 is an outlier, and so is nothing below."""
    model = layer(2, torch.bfloat16)
    x = torch.tensor([[6.28125, 6.3125]], dtype=torch.bfloat16)
    with OutlierRecorder(model, ["0"], 6.3) as recorder:
        model(x)
    assert recorder.statistics["0"].count.tolist() == [0, 1]


def test_calls_of_different_lengths_are_one_record():
    model = layer(4)
    with OutlierRecorder(model, ["0"]) as recorder:
        model(torch.full((2, 3, 4), 7.0))
        model(torch.full((4,), 9.0))
        model(torch.zeros(0, 4))
        model(input=torch.zeros(1, 5, 4))
    found = recorder.statistics["0"]
    assert found.positions == 2 * 3 + 1 + 5
    assert found.position_count.tolist() == [8 + 4, 8, 8, 0, 0]
    assert found.position_magnitude.tolist() == [9, 7, 7, 0, 0]


def test_memory_does_not_grow_with_the_text():
    model = layer(8)
    with OutlierRecorder(model, ["0"]) as recorder:
        for _ in range(20):
            model(torch.randn(4, 10, 8))
    sizes = [len(v) for v in vars(recorder.statistics["0"]).values() if isinstance(v, torch.Tensor)]
    assert sizes == [8, 8, 10, 10]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_model_computes_the_same_bits(int8, dtype):
    model = tiny.tiny_llama().to(dtype)
    names = plan_conversion(model, None).convert
    if int8:
        quantize_model(model, Int8Config())
    x = ids(11, 2)
    with torch.inference_mode():
        before = model(x).logits
        with OutlierRecorder(model, names, 0.5) as recorder:
            during = model(x).logits
        after = model(x).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert list(recorder.statistics) == list(names)
    assert all(found.positions == 22 for found in recorder.statistics.values())


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_hooks_are_gone_afterwards_whatever_happens():
    model = tiny.tiny_llama()
    names = plan_conversion(model, None).convert
    recorder = OutlierRecorder(model, names)
    with recorder:
        assert hooks(model) > len(names)
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), recorder:
        raise RuntimeError
    assert hooks(model) == 0
    assert plan_conversion(model, None).convert == names  # a layer with hooks would stay float


def test_hooks_are_gone_if_one_cannot_be_set(monkeypatch):
    model = tiny.tiny_llama()
    names = plan_conversion(model, None).convert

    def fail(*arguments, **named):
        raise MemoryError

    monkeypatch.setattr(model.get_submodule(names[-1]), "register_forward_pre_hook", fail)
    with pytest.raises(MemoryError), OutlierRecorder(model, names):
        pass
    assert hooks(model) == 0


def test_gradients_flow_through_a_watched_model():
    model = layer(7)
    x = planted(5, 7).requires_grad_()
    with OutlierRecorder(model, ["0"]) as recorder:
        model(x).sum().backward()
    assert torch.equal(x.grad, model[0].weight.sum(0).expand(5, 7))
    assert not recorder.statistics["0"].magnitude.requires_grad


def test_it_can_be_entered_again_and_goes_on_counting():
    model = layer(7)
    recorder = OutlierRecorder(model, ["0"])
    with torch.inference_mode(), recorder:
        model(planted(5, 7))
    with recorder:
        model(planted(5, 7))
    assert recorder.statistics["0"].count.tolist() == [0, 4, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_opt, tiny.tiny_classifier])
def test_layers_that_read_the_hidden_state_are_told_by_their_norm(make):
    model = make()
    names = plan_conversion(model, None).convert
    with torch.inference_mode(), OutlierRecorder(model, names) as recorder:
        model(ids(9))
    normed = {name.split(".")[-1] for name, found in recorder.statistics.items() if found.normalized}
    rest = {name.split(".")[-1] for name, found in recorder.statistics.items() if not found.normalized}
    expected = {
        tiny.tiny_llama: ({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}, {"o_proj", "down_proj"}),
        tiny.tiny_gpt2: ({"c_attn", "c_fc"}, {"c_proj"}),
        tiny.tiny_opt: (
            {"q_proj", "k_proj", "v_proj", "fc1", "project_out"},
            {"out_proj", "fc2", "project_in"},
        ),
        tiny.tiny_classifier: ({"query", "key", "value", "dense"}, {"dense"}),
    }
    assert (normed, rest) == expected[make]


def test_experts_and_layers_that_are_never_called():
    model = tiny.tiny_mixture()
    model.unused = nn.Linear(4, 4)
    names = (*plan_conversion(model, None).convert, "unused")
    with torch.inference_mode(), OutlierRecorder(model, names) as recorder:
        model(ids(9))
    experts = recorder.statistics["model.layers.0.mlp.experts"]
    assert (experts.positions, experts.features, experts.normalized) == (9, 32, True)
    assert recorder.never_called == ("unused",)


def test_what_it_refuses():
    with pytest.raises(InputError, match="no layer 'nope'"):
        OutlierRecorder(layer(4), ["nope"])
    for threshold in (0, -1, float("nan")):
        with pytest.raises(InputError, match="must be above 0"):
            OutlierRecorder(layer(4), ["0"], threshold)
