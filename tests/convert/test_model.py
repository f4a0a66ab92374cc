"""Conversion in memory: the same bits as layer by layer, in place, one layer at a time, and back."""

import copy
import json
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from agreement.cases import same_bits
from llmint8 import (
    ConfigError,
    Int8Config,
    Int8Linear,
    QuantizationError,
    dequantize_model,
    quantize_model,
    set_threshold,
)

TOKENS = torch.arange(20)[None]


def test_each_layer_is_what_from_linear_gives() -> None:
    source, model = tiny.tiny_llama(), tiny.tiny_llama()
    report = quantize_model(model, Int8Config("auto"))
    for row in report.converted:
        want = Int8Linear.from_linear(source.get_submodule(row.name), "auto")
        got = model.get_submodule(row.name)
        assert torch.equal(got.weight, want.weight)
        assert same_bits(got.SCB, want.SCB)
        assert got.threshold == "auto"
        assert got.training == source.training
    assert same_bits(model.lm_head.weight, source.lm_head.weight)


def test_a_layer_under_two_names_is_replaced_under_both() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.ModuleDict({"c": nn.Linear(2, 2)})})
    model["again"], model["b"]["far"] = model["a"], model["a"]
    report = quantize_model(model)
    assert {row.name for row in report.converted} == {"a", "b.c"}
    assert isinstance(model["a"], Int8Linear)
    assert model["again"] is model["a"] is model["b"]["far"]


def test_at_most_one_float_layer_is_alive_beyond_the_model() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    sources = [weakref.ref(layer) for layer in model]
    alive: list[int] = []
    quantize_model(model, progress=lambda *_: alive.append(sum(s() is not None for s in sources)))
    assert alive == [5, 4, 3, 2, 1]
    assert [s() for s in sources] == [None] * 5


def test_progress_counts_up() -> None:
    calls: list[tuple[int, int]] = []
    quantize_model(tiny.tiny_llama(), progress=lambda *call: calls.append(call))
    assert calls == [(done, 14) for done in range(1, 15)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_weight_leaves_the_model_as_it_was(bad: float) -> None:
    model = tiny.tiny_llama()
    model.model.layers[1].mlp.down_proj.weight.data[-1, -1] = bad
    with pytest.raises(QuantizationError, match=r"^model\.layers\.1\.mlp\.down_proj\.weight holds a NaN"):
        quantize_model(model)
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    report = quantize_model(model, Int8Config(skip_modules=["model.layers.1.mlp.down_proj"]))
    assert len(report.converted) == 13


def test_bad_requests_leave_the_model_as_it_was() -> None:
    with pytest.raises(QuantizationError, match="no data"):
        quantize_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))
    model = tiny.tiny_llama()
    with pytest.raises(ConfigError, match="'no_such_layer' matches no module"):
        quantize_model(model, Int8Config(skip_modules=["no_such_layer"]))
    quantize_model(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(QuantizationError, match="int8 already: load the float checkpoint"):
        quantize_model(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_layer_with_hooks_keeps_them_and_the_model_still_saves(tmp_path: Path) -> None:
    model, seen = tiny.tiny_llama(), []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    quantize_model(model)
    want = model(TOKENS).logits
    assert seen == [1]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.model.layers[0].mlp.up_proj) is nn.Linear
    assert same_bits(loaded(TOKENS).logits, want)


def test_config_json_says_what_is_needed_to_load(tmp_path: Path) -> None:
    model = tiny.tiny_llama()
    quantize_model(model, Int8Config("auto", ["down_proj"]))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == {"quant_method": "llmint8", "threshold": "auto", "skip_modules": ["down_proj"]}


def test_models_without_a_config_are_models_too() -> None:
    model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    model.config = {"mine": 1}
    x = torch.randn(5, 7)
    report = quantize_model(model)
    assert len(report.converted) == 2
    assert model.config == {"mine": 1}
    assert model(x).shape == (5, 3)
    assert not any(isinstance(m, Int8Linear) for m in dequantize_model(model).modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_models_run_in_their_dtype(dtype: torch.dtype) -> None:
    model = tiny.tiny_llama().to(dtype)
    quantize_model(model)
    assert model(TOKENS).logits.dtype == dtype
    assert {m.SCB.dtype for m in model.modules() if isinstance(m, Int8Linear)} == {torch.float32}
    dequantize_model(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(TOKENS).logits.dtype == dtype


def test_moving_a_converted_model_keeps_its_bits() -> None:
    model = tiny.tiny_llama()
    quantize_model(model)
    want = {name: m.SCB.clone() for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    model.half().bfloat16().double().float()
    for name, scb in want.items():
        assert same_bits(model.get_submodule(name).SCB, scb)


def test_thresholds_of_a_whole_model_reach_what_is_saved(tmp_path: Path) -> None:
    model = tiny.tiny_llama()
    with pytest.raises(QuantizationError, match="no int8 layer"):
        set_threshold(model, 6.0)
    quantize_model(model, Int8Config(6.0, ["down_proj"]))
    with pytest.raises(ConfigError):
        set_threshold(model, -1.0)
    set_threshold(model, "auto")
    assert {m.threshold for m in model.modules() if isinstance(m, Int8Linear)} == {"auto"}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.quantization_config == Int8Config("auto", ("down_proj",))
    assert same_bits(loaded(TOKENS).logits, model(TOKENS).logits)


def test_conv1d_becomes_what_a_transposed_linear_layer_becomes() -> None:
    model = tiny.tiny_gpt2()
    source = copy.deepcopy(model.transformer.h[0].mlp.c_fc)
    quantize_model(model)
    linear = nn.Linear(32, 128)
    linear.weight.data, linear.bias.data = source.weight.data.T, source.bias.data
    want, got, x = Int8Linear.from_linear(linear), model.transformer.h[0].mlp.c_fc, torch.randn(5, 32)
    assert got.weight.is_contiguous()
    assert torch.equal(got.weight, want.weight)
    assert same_bits(got(x), want(x))


@pytest.mark.parametrize("duplicate", [lambda m: m, copy.deepcopy])
def test_dequantised_gpt2_is_gpt2_again(tmp_path: Path, duplicate) -> None:
    model = tiny.tiny_gpt2()
    kinds = [type(m) for m in model.modules()]
    quantize_model(model)
    model = dequantize_model(duplicate(model))
    assert [type(m) for m in model.modules()] == kinds
    want = model(TOKENS).logits
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same_bits(AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits, want)
