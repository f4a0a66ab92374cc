"""`Linear4bit`: what it computes, stores and refuses."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llmint8.errors import QuantizationError
from llmint8.nn import Int8Linear, Linear4bit
from llmint8.reference.decoder import float_linear

#: Written by bitsandbytes 0.50.2: two layers of each kind, with their float weights and what it de-quantised.
FIXTURE = Path(__file__).parent / "fourbit.safetensors"


def layer(**settings) -> Linear4bit:
    torch.manual_seed(0)
    return Linear4bit.from_linear(nn.Linear(70, 33), **settings)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_layer_is_its_dequantised_weight(quant_type: str, double_quant: bool) -> None:
    module = layer(quant_type=quant_type, double_quant=double_quant)
    x = torch.randn(2, 5, 70)
    weight = module.dequantize()
    want = float_linear(x.view(10, 70), weight, module.bias.detach()).view(2, 5, 33)
    assert torch.equal(module(x), want)
    torch.testing.assert_close(module.to_float_layer()(x), want)
    assert module.weight.shape == (-(-70 * 33 // 2), 1)
    assert (module.absmax.dtype == torch.uint8) == double_quant


def test_gradients_are_those_of_the_float_layer() -> None:
    module = layer(double_quant=True)
    x = torch.randn(7, 70, requires_grad=True)
    module(x).square().sum().backward()
    got, got_bias = x.grad.clone(), module.bias.grad.clone()
    x.grad = None
    float_layer = copy.deepcopy(module.to_float_layer())
    float_layer.bias.grad = None
    float_layer(x).square().sum().backward()
    torch.testing.assert_close(got, x.grad)
    torch.testing.assert_close(got_bias, float_layer.bias.grad)
    assert module.weight.grad is None


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_state_dict_says_all(double_quant: bool) -> None:
    module = layer(quant_type="fp4", double_quant=double_quant)
    state = module.state_dict()
    facts = json.loads(bytes(state["weight.quant_state.bitsandbytes__fp4"].tolist()))
    assert facts["shape"] == [33, 70]
    assert ("weight.nested_absmax" in state) == double_quant
    other = Linear4bit(70, 33)
    assert torch.equal(other(torch.randn(1, 70)), torch.zeros(1, 33))
    other.load_state_dict(state)
    x = torch.randn(3, 70)
    assert torch.equal(other(x), module(x))
    assert other.state_dict().keys() == state.keys()
    assert other.quant_type == "fp4"


def test_bitsandbytes_reads_and_writes_the_same() -> None:
    stored = load_file(FIXTURE)
    names = {key.split(".")[0] for key in stored}
    assert len(names) == 4
    for name in names:
        part = {k.removeprefix(f"{name}."): t for k, t in stored.items() if k.startswith(f"{name}.")}
        source, want = part.pop("source"), part.pop("dequantized")
        float_layer = nn.Linear(source.shape[1], source.shape[0], bias=False)
        float_layer.weight = nn.Parameter(source)
        quant_type, double_quant = name.split("_")[0], name.endswith("double")
        made = Linear4bit.from_linear(float_layer, quant_type, double_quant)
        loaded = Linear4bit(source.shape[1], source.shape[0], bias=False)
        loaded.load_state_dict(part)
        for module in (made, loaded):
            state = module.state_dict()
            assert state.keys() == part.keys()
            for key, tensor in part.items():
                if "quant_state" in key:
                    both = (json.loads(bytes(t.tolist())) for t in (tensor, state[key]))
                    assert next(both) == next(both)
                else:
                    assert torch.equal(state[key], tensor), key
            assert torch.equal(module.dequantize(source.dtype), want)


def test_casts_leave_codes_and_scales_alone() -> None:
    module = layer(double_quant=True)
    before = module.dequantize()
    module.half()
    assert module.bias.dtype == torch.float16
    assert torch.equal(module.dequantize(), before)
    assert module(torch.randn(2, 70).half()).dtype == torch.float16


def test_what_is_refused() -> None:
    with pytest.raises(QuantizationError, match="nf4"):
        layer(quant_type="int4")
    with pytest.raises(QuantizationError, match="already"):
        Linear4bit.from_linear(layer())
    with pytest.raises(QuantizationError, match="already"):
        Linear4bit.from_linear(Int8Linear(4, 4))
    broken = nn.Linear(4, 4)
    broken.weight.data[1, 2] = torch.nan
    with pytest.raises(QuantizationError, match="NaN"):
        Linear4bit.from_linear(broken)
    module = layer()
    for change, reason in (
        ({"weight": torch.randn(33, 70)}, "load the float checkpoint first"),
        ({"weight.absmax": torch.zeros(3)}, "absmax is"),
        ({"weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8)}, "cannot be read"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            module.load_state_dict({**module.state_dict(), **change})
    state = module.state_dict()
    del state["weight.absmax"]
    with pytest.raises(RuntimeError, match="mean nothing"):
        module.load_state_dict(state)
