"""Injected outliers leave every bit of the float model's outputs, and are where they were asked for."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import llmint8
from llmint8.analysis.inject import inject_outliers
from llmint8.analysis.readers import find_readers, tensors_in
from llmint8.errors import InputError
from zoo import ZOO

#: Norms of a layer, as the last parts of their names, and how many linear layers read each.
EXPECTED = {
    "llama": {"input_layernorm": 3, "post_attention_layernorm": 2},
    "qwen2": {"input_layernorm": 3, "post_attention_layernorm": 2},
    "qwen3": {"input_layernorm": 3, "post_attention_layernorm": 2},
    "gemma3": {"input_layernorm": 3, "pre_feedforward_layernorm": 2},
    "gpt2": {"ln_1": 1, "ln_2": 1},
    "opt": {"self_attn_layer_norm": 3, "final_layer_norm": 1},
    "falcon": {"ln_attn": 1, "ln_mlp": 1},
    "mixtral": {"input_layernorm": 3},
    "t5": {"layer_norm": None},
    "vit": {"layernorm_before": 3, "layernorm_after": 1},
}


def build(kind):
    """A model whose norms have weights and biases of their own."""
    model = ZOO[kind].build()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def outputs(model, inputs):
    with torch.no_grad():
        return list(tensors_in(model(**inputs)))


@pytest.mark.parametrize("factor", [2, 64])
@pytest.mark.parametrize("kind", EXPECTED)
def test_outputs_keep_their_bits(kind, factor):
    model, inputs = build(kind), ZOO[kind].inputs()
    original = copy.deepcopy(model)
    injection = inject_outliers(model, inputs, [3, 17], factor)
    before, after = outputs(original, inputs), outputs(model, inputs)
    assert len(before) == len(after) > 0
    assert all(map(torch.equal, before, after))
    assert (injection.columns, injection.factor) == ((3, 17), factor)
    for suffix, readers in EXPECTED[kind].items():
        scaled = {name: linears for name, linears in injection.norms.items() if name.endswith(suffix)}
        assert len(scaled) >= 2
        assert readers is None or all(len(linears) == readers for linears in scaled.values())
    for name, linears in injection.norms.items():
        assert_scaled(original, model, name, linears, [3, 17], factor)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, original.get_parameter(n))}
    owners = {*injection.norms, *(linear for linears in injection.norms.values() for linear in linears)}
    assert {name.rpartition(".")[0] for name in changed} == owners
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def assert_scaled(original, model, name, linears, columns, factor):
    norms = original.get_submodule(name), model.get_submodule(name)
    x = torch.randn(5, len(norms[0].weight), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        want = norms[0](x)
        want[:, columns] *= factor
        assert torch.equal(norms[1](x), want)
    for linear in linears:
        old, new = (m.get_submodule(linear) for m in (original, model))
        dim = 1 if isinstance(old, nn.Linear) else 0
        want = old.weight.detach().clone()
        want.index_copy_(dim, torch.tensor(columns), want.index_select(dim, torch.tensor(columns)) / factor)
        assert torch.equal(new.weight, want)


def test_what_more_than_linear_layers_read_is_left_alone():
    model = build("gemma3")
    left = inject_outliers(model, ZOO["gemma3"].inputs()).left
    assert left["model.layers.0.post_attention_layernorm"] == "add reads it too, outside of a linear layer"
    assert "reads it too" in left["model.layers.0.self_attn.q_norm"]
    assert left["model.norm"] == "lm_head shares its weight with another module"
    left = inject_outliers(build("mixtral"), ZOO["mixtral"].inputs()).left
    assert set(left) == {f"model.layers.{i}.post_attention_layernorm" for i in range(2)}  # the router's


def test_an_int8_model_is_refused():
    model = build("llama")
    llmint8.quantize_model(model)
    with pytest.raises(InputError, match="quantised already; inject outliers into the float model"):
        inject_outliers(model, ZOO["llama"].inputs())


def test_a_layer_that_is_called_by_keyword_counts():
    class ByKeyword(Plain):
        def forward(self, x):
            return self.linear(input=self.norm(x))

    model, x = ByKeyword(), torch.randn(3, 8)
    before = model(x)
    assert inject_outliers(model, {"x": x}, [5], 16).norms == {"norm": ("linear",)}
    assert torch.equal(model(x), before)


def test_a_model_that_returns_no_tensor_proves_nothing():
    class Silent(Plain):
        def forward(self, x):
            super().forward(x)

    with pytest.raises(InputError, match="no tensor that could prove"):
        inject_outliers(Silent(), {"x": torch.randn(2, 8)}, 1, 2)


def test_columns_are_spread_evenly():
    columns = inject_outliers(build("llama"), ZOO["llama"].inputs(), 4, 2).columns
    assert columns == (4, 12, 20, 28)


def test_a_model_without_pairs_is_refused_and_unchanged():
    config = BertConfig(**ZOO["bert"].settings)
    model = BertModel(config, add_pooling_layer=False).eval()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"no norm whose output only linear layers read \(.*LayerNorm: add"):
        inject_outliers(model, ZOO["bert"].inputs())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(InputError, match="it has no norm"):
        inject_outliers(nn.Linear(4, 4), {"input": torch.ones(1, 4)})


class Plain(nn.Module):
    """A norm, a linear layer, and a place for something that spoils the equality."""

    def __init__(self, spoil=lambda x: x):
        super().__init__()
        self.norm, self.linear, self.spoil = nn.LayerNorm(8), nn.Linear(8, 8), spoil

    def forward(self, x):
        return self.linear(self.spoil(self.norm(x)))


def test_views_are_followed_and_copies_are_not():
    x = torch.randn(1, 6, 8)
    norms, _ = find_readers(Plain(lambda y: y.view(6, 8)[1:].unsqueeze(0)), {"x": x})
    assert [(norm.name, list(norm.readers), norm.obstacle) for norm in norms] == [("norm", ["linear"], None)]
    norms, _ = find_readers(Plain(lambda y: y * 2), {"x": x})
    assert norms[0].obstacle == "mul reads it too, outside of a linear layer"
    norms, _ = find_readers(Plain(lambda y: y.view(1, 12, 4).repeat(1, 1, 2)), {"x": x})
    assert norms[0].obstacle is not None


def test_a_linear_layer_that_reads_other_tensors_too_is_left_alone():
    class Twice(Plain):
        def forward(self, x):
            return super().forward(x) + self.linear(x)

    norms, _ = find_readers(Twice(), {"x": torch.randn(2, 8)})
    assert norms[0].obstacle == "linear reads other tensors too"


def test_a_hidden_state_that_is_returned_is_left_alone():
    class Returns(Plain):
        def forward(self, x):
            hidden = self.norm(x)
            return self.linear(hidden), {"hidden": [hidden]}

    norms, _ = find_readers(Returns(), {"x": torch.randn(2, 8)})
    assert norms[0].obstacle == "the model returns its output"


def test_if_bits_would_change_the_model_is_put_back():
    """Dropout draws anew in the second pass."""
    model = nn.Sequential(
        OrderedDict(norm=nn.LayerNorm(64), linear=nn.Linear(64, 64), dropout=nn.Dropout(0.5))
    ).train()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="does not return the same bits; load it in float32, in evaluation"):
        inject_outliers(model, {"input": torch.randn(8, 64)})
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_norm_whose_type_cannot_hold_the_weight_is_refused():
    """(1 + w)·64 − 1 needs more bits than bfloat16 has."""
    model = build("gemma3").bfloat16()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"does not scale exactly with its torch.bfloat16 weight; load the"):
        inject_outliers(model, ZOO["gemma3"].inputs(), 6, 64)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("factor", [0, 1, 3, -2, 2.0, 0.5, True])
def test_the_factor_is_a_power_of_two(factor):
    with pytest.raises(InputError, match="must be a power of two from 2 on"):
        inject_outliers(build("llama"), ZOO["llama"].inputs(), 1, factor)


@pytest.mark.parametrize("columns", [0, 33, [], [-1], [32]])
def test_columns_exist(columns):
    with pytest.raises(InputError, match=r"give 1 to 32|must be within 0 to 31"):
        inject_outliers(build("llama"), ZOO["llama"].inputs(), columns, 2)
