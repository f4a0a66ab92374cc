"""A scheme on a model: the kernels return the same bits, and the model is untouched afterwards."""

from __future__ import annotations

import copy

import pytest
import torch

import llmint8
from llmint8 import Int8Config, reference
from llmint8.analysis.schemes import Usage, applied, calibrate, linear_layers, schemes_named
from llmint8.convert import plan_conversion
from llmint8.errors import InputError
from tiny import tiny_gpt2, tiny_llama, tiny_mixture, tiny_opt
from zoo import TOKENS, ZOO

IDS = torch.arange(40)[None] * 5 % 256
BUILDERS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "opt": tiny_opt, "mixtral": tiny_mixture}
#: Experts with a bias and a gate of their own, and experts that are stored the other way round.
MIXTURES = ("qwen3_moe", "gpt_oss")


def planned(model):
    return plan_conversion(model, None).convert


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threshold", [0.0, 6.0, "auto"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_kernels_return_the_bits_of_their_scheme(kind, threshold, dtype):
    model = BUILDERS[kind]().to(dtype)
    int8 = copy.deepcopy(model)
    llmint8.quantize_model(int8, Int8Config(threshold))
    shown = threshold if threshold == "auto" else int(threshold)
    (scheme,) = schemes_named([f"llmint8-{shown}"])
    with applied(model, planned(model), scheme):
        emulated = logits(model)
    assert torch.equal(emulated, logits(int8))
    assert not torch.equal(emulated, logits(model))


@pytest.mark.parametrize("kind", MIXTURES)
def test_so_do_the_kernels_of_experts(kind):
    model = ZOO[kind].build()
    int8 = copy.deepcopy(model)
    llmint8.quantize_model(int8, Int8Config("auto"))
    (scheme,) = schemes_named(["llmint8-auto"])
    with applied(model, planned(model), scheme) as usage:
        emulated = logits(model, TOKENS)
    assert torch.equal(emulated, logits(int8, TOKENS))
    assert {name.rpartition(".")[2] for name in usage} >= {"gate_up_proj", "down_proj"}


@pytest.mark.parametrize("kind", BUILDERS)
def test_float_is_the_model_itself(kind):
    model = BUILDERS[kind]()
    (scheme,) = schemes_named(["float"])
    with applied(model, planned(model), scheme) as usage:
        torch.testing.assert_close(logits(model), logits(BUILDERS[kind]()), rtol=1e-4, atol=1e-4)
    assert all(u.kept_values == u.values > 0 for u in usage.values())


def test_afterwards_nothing_is_left():
    model = tiny_gpt2()
    before, state = logits(model), copy.deepcopy(model.state_dict())
    (scheme,) = schemes_named(["absmax"])
    with applied(model, planned(model), scheme):
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    with pytest.raises(IndexError), applied(model, planned(model), scheme):
        logits(model, IDS + 1000)  # no such tokens
    assert torch.equal(logits(model), before)
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_one_scheme_at_a_time():
    model = tiny_llama()
    names = planned(model)
    first, second = schemes_named(["absmax", "llmint8-auto"])
    with applied(model, names[1:], first):
        inside = logits(model)
        with pytest.raises(InputError, match="leave the other context first"), applied(model, names, second):
            pass
        assert torch.equal(logits(model), inside)


def test_what_is_no_float_linear_layer_is_refused():
    model = tiny_llama()
    names = planned(model)
    with pytest.raises(InputError, match=r"model.norm is a LlamaRMSNorm and no float linear layer"):
        linear_layers(model, [*names, "model.norm"])
    for int8 in (model, tiny_mixture()):
        names = planned(int8)
        llmint8.quantize_model(int8)
        with pytest.raises(InputError, match=r"is a Int8\w+ and no float linear layer; give the float model"):
            linear_layers(int8, names[-1:])


def test_the_layers_of_experts():
    model = tiny_mixture()
    name = next(name for name, _ in model.named_modules() if name.endswith("experts"))
    layers = linear_layers(model, [name])
    experts = model.get_submodule(name)
    assert list(layers) == [f"{name}.gate_up_proj", f"{name}.down_proj"]
    for layer, parts in layers.items():
        assert [part.name for part in parts] == [layer] * 4
        weight = getattr(experts, layer.rpartition(".")[2])
        assert torch.equal(torch.stack([part.weight for part in parts]), weight)


def test_usage_counts_values_and_columns():
    usage = Usage()
    usage.add(4, 6, None)
    assert (usage.values, usage.kept_values, usage.columns, usage.kept_columns) == (24, 0, 6, 0)
    assert usage.columns_ever == 0
    values = torch.zeros(4, 6, dtype=torch.bool)
    values[1, 2] = values[3, 2] = values[0, 5] = True
    usage.add(4, 6, values)
    assert (usage.values, usage.kept_values, usage.columns, usage.kept_columns) == (48, 3, 12, 2)
    whole = torch.tensor([[True, False, True, False, False, False]])
    usage.add(2, 6, whole)
    assert (usage.values, usage.kept_values, usage.columns, usage.kept_columns) == (60, 7, 18, 4)
    assert usage.columns_ever == 3


def test_counting_goes_on_where_it_stopped():
    model = tiny_llama()
    (scheme,) = schemes_named(["llmint8-auto"])
    with applied(model, planned(model), scheme) as usage:
        logits(model)
    once = {name: u.values for name, u in usage.items()}
    with applied(model, planned(model), scheme, usage):
        logits(model)
    assert {name: u.values for name, u in usage.items()} == {name: 2 * n for name, n in once.items()}


def test_a_calibration_sees_the_inputs():
    model = tiny_gpt2()
    name = "transformer.h.1.mlp.c_fc"
    rows = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    seen = calibrate(model, [name], lambda ids: logits(model, ids), IDS[0], 16)
    handle.remove()
    assert len(rows) == 3
    x = torch.cat(rows, dim=1)[0]
    assert torch.equal(seen[name].largest, x.abs().amax(dim=0))
    q, _ = reference.quantize_rows(x, -1.0)
    assert torch.equal(seen[name].outliers, (q.abs() > 127).sum(dim=0))
    assert "forward" not in vars(model.get_submodule(name))


@pytest.mark.parametrize("kind", ["smoothquant", "llmint8-auto-int16"])
def test_a_layer_that_the_calibration_did_not_reach_is_named(kind):
    model = tiny_llama()
    names = planned(model)
    seen = calibrate(model, names[:1], lambda ids: logits(model, ids), IDS[0], 40)
    (scheme,) = schemes_named([kind], seen)
    with applied(model, names, scheme), pytest.raises(InputError, match=f"did not reach {names[1]}"):
        logits(model)
