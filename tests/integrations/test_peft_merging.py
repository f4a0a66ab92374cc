"""Merging adapters into int8 codes: one rounding, reported, and undone bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import llmint8
from integrations.adapters import (
    TARGETS,
    adapted,
    int8_gpt2,
    int8_llama,
    int8_state,
    logits,
    lora_config,
    randomize,
    same,
)
from llmint8 import Int8Linear
from llmint8.errors import QuantizationError
from llmint8.integrations.peft_lora import Int8LoraLinear
from llmint8.reference import quantize_weight

pytestmark = pytest.mark.filterwarnings("ignore:merging an adapter", "ignore:Already following adapters")

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def exact_weight(layer: Int8LoraLinear, adapter: str = "default") -> Tensor:
    """W + s·BA, and for DoRA each row scaled to its magnitude; float64."""
    a, b = layer.lora_A[adapter].weight.double(), layer.lora_B[adapter].weight.double()
    weight = layer.get_base_layer().dequantize().double() + layer.scaling[adapter] * b @ a
    if adapter in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[adapter].weight.double()
        weight = weight * (magnitude / torch.linalg.norm(weight, dim=1))[:, None]
    return weight.detach()


@kinds
def test_the_merged_weight_is_the_exact_one_rounded_once(kind: dict[str, bool]) -> None:
    model = adapted(int8_llama(), **kind)
    layer = model.get_submodule(LAYER)
    exact = exact_weight(layer)
    model.merge_adapter(safe_merge=True)
    codes, absmax = quantize_weight(exact.float())
    base = layer.get_base_layer()
    assert int((base.weight.int() - codes.int()).abs().max()) <= 1  # a tie may fall either way in float32
    assert float((base.weight != codes).float().mean()) < 1e-2
    torch.testing.assert_close(base.SCB, absmax, rtol=1e-5, atol=0)


@kinds
@pytest.mark.parametrize("make", [int8_llama, int8_gpt2])
def test_unmerging_restores_every_bit(make: object, kind: dict[str, bool]) -> None:
    targets = TARGETS if make is int8_llama else ["c_attn", "c_proj"]
    model = adapted(make(), target_modules=targets, **kind)  # type: ignore[operator]
    state, before = int8_state(model), logits(model)
    for _ in range(2):
        model.merge_adapter()
        merged = logits(model)
        assert not same(int8_state(model), state)
        assert not torch.equal(merged, before)
        model.unmerge_adapter()
        assert same(int8_state(model), state)
        assert torch.equal(logits(model), before)


def test_switching_adapters_off_unmerges() -> None:
    base = int8_llama()
    without = logits(base)
    model = adapted(base)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), without)


@kinds
def test_a_merged_model_answers_like_the_adapter(kind: dict[str, bool]) -> None:
    model = adapted(int8_llama(), **kind)
    expected, without = logits(model), logits(int8_llama())
    merged = model.merge_and_unload(safe_merge=True)
    assert not any(isinstance(m, Int8LoraLinear) for m in merged.modules())
    difference = float((logits(merged) - expected).abs().mean())
    assert difference < 0.1 * float((without - expected).abs().mean())


def test_a_merged_model_is_saved_and_loaded_as_any_other(tmp_path: Path) -> None:
    merged = adapted(int8_llama()).merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(merged))


def test_an_adapter_that_does_nothing_is_merged_without_error() -> None:
    model = adapted(int8_llama())
    for layer in model.modules():
        if isinstance(layer, Int8LoraLinear):
            torch.nn.init.zeros_(layer.lora_B["default"].weight)
    state = int8_state(model)
    model.merge_adapter()
    for before, after in zip(state, int8_state(model), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-6, atol=0)  # codes exactly, scales but for an ulp
    assert llmint8.merge_report(model).total.change == 0


@kinds
def test_several_adapters_in_one_merge_or_one_by_one(kind: dict[str, bool]) -> None:
    model = adapted(int8_llama(), **kind)
    model.add_adapter("second", lora_config(r=2, **kind))
    randomize(model, 2, "second")
    state = int8_state(model)
    one_by_one = copy.deepcopy(model)
    model.merge_adapter(["default", "second"])
    one_by_one.merge_adapter(["default"])
    one_by_one.merge_adapter(["second"])
    assert same(int8_state(model), int8_state(one_by_one))
    one_by_one.unmerge_adapter()
    assert same(int8_state(one_by_one), state)
    assert llmint8.merge_report(model).total.adapters == ("default", "second")


def test_the_bias_of_an_adapter_is_merged_and_unmerged() -> None:
    model = adapted(int8_gpt2(), target_modules=["c_attn"], lora_bias=True)
    layer = model.get_submodule("base_model.model.transformer.h.0.attn.c_attn")
    before = layer.get_base_layer().bias.clone()
    state = int8_state(model)
    model.merge_adapter()
    expected = before + layer.lora_B["default"].bias * layer.scaling["default"]
    assert torch.equal(layer.get_base_layer().bias, expected)
    model.unmerge_adapter()
    assert same(int8_state(model), state)


@pytest.mark.filterwarnings("ignore:.*lora_bias=True")
def test_an_adapter_with_bias_on_a_layer_without_is_refused() -> None:
    model = adapted(int8_llama(), lora_bias=True)
    with pytest.raises(QuantizationError, match=r"q_proj: the adapter has a bias.*the layer has none"):
        model.merge_adapter()


@pytest.mark.parametrize("safe_merge", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_adapter_is_refused_and_changes_nothing(safe_merge: bool, value: float) -> None:
    model = adapted(int8_llama())
    layer = model.get_submodule(LAYER)
    layer.lora_A["default"].weight.data[0, 0] = value
    state = int8_state(layer)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj: merging default.*not finite"):
        model.merge_and_unload(safe_merge=safe_merge)
    assert same(int8_state(layer), state)
    assert not layer.merged


def test_the_report_measures_each_layer_and_all() -> None:
    model = adapted(int8_llama())
    layer = model.get_submodule(LAYER)
    exact, before = exact_weight(layer), layer.get_base_layer().dequantize()
    merged = model.merge_and_unload()
    report = llmint8.merge_report(merged)
    assert len(report.layers) == 2 * len(TARGETS)
    error = report.layers["model.layers.0.self_attn.q_proj"]
    difference = merged.model.layers[0].self_attn.q_proj.dequantize().double() - exact
    assert error.adapters == ("default",)
    assert error.error == pytest.approx(float(torch.linalg.norm(difference)), rel=1e-4)
    assert error.largest == pytest.approx(float(difference.abs().max()), rel=1e-3)
    assert error.weight == pytest.approx(float(torch.linalg.norm(exact)), rel=1e-5)
    assert error.change == pytest.approx(float(torch.linalg.norm(exact - before)), rel=1e-5)
    total = sum(e.error**2 for e in report.layers.values()) ** 0.5
    assert report.total.error == pytest.approx(total)
    assert 0 < report.total.relative < 0.01
    lines = str(report).splitlines()
    assert len(lines) == 2 * len(TARGETS) + 1
    assert lines[-1].startswith(f"all {2 * len(TARGETS)} layers: {report.total.relative:.3%} of the weight")


def test_the_report_names_the_layers_of_a_model_with_adapters_too_and_ends_with_unmerging() -> None:
    model = adapted(int8_llama())
    model.merge_adapter()
    assert LAYER in llmint8.merge_report(model).layers
    model.unmerge_adapter()
    with pytest.raises(QuantizationError, match="no adapter is merged"):
        llmint8.merge_report(model)


def test_merging_says_that_it_rounds_and_unmerging_nothing_warns() -> None:
    model = adapted(int8_llama())
    layer = model.get_submodule(LAYER)
    with pytest.warns(UserWarning, match="no adapter is merged: nothing to undo"):
        layer.unmerge()
    with pytest.warns(UserWarning, match=r"llmint8\.merge_report\(model\)"):
        layer.merge()


def test_a_merged_model_can_be_copied_and_the_copy_unmerged() -> None:
    model = adapted(int8_llama())
    state = int8_state(model)
    model.merge_adapter()
    twin = copy.deepcopy(model)
    twin.unmerge_adapter()
    assert same(int8_state(twin), state)
    assert model.get_submodule(LAYER).merged
    assert not same(int8_state(model), state)


def scales_as_parameters(model: nn.Module) -> None:
    """As tensor parallelism keeps them."""
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            scales = layer._buffers.pop("SCB")
            layer.register_parameter("SCB", nn.Parameter(scales, requires_grad=False))


def test_scales_that_are_parameters_are_merged_and_restored() -> None:
    model, twin = adapted(int8_llama()), adapted(int8_llama())
    scales_as_parameters(model)
    state = int8_state(model)
    model.merge_adapter()
    twin.merge_adapter()
    assert same(int8_state(model), int8_state(twin))
    model.unmerge_adapter()
    assert same(int8_state(model), state)


def test_a_merged_model_is_cast_and_unmerged() -> None:
    model = adapted(int8_gpt2(), target_modules=["c_attn"])
    state = int8_state(model.to(torch.bfloat16))
    model = adapted(int8_gpt2(), target_modules=["c_attn"])
    model.merge_adapter()
    model.to(torch.bfloat16).unmerge_adapter()
    assert same(int8_state(model), state)


def test_weighted_adapters_are_combined(tmp_path: Path) -> None:
    model = adapted(int8_llama())
    model.add_adapter("second", lora_config())
    randomize(model, 2, "second")
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both", combination_type="svd")
    model.set_adapter("both")
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    loaded = PeftModel.from_pretrained(int8_llama(), tmp_path / "both")
    torch.testing.assert_close(logits(loaded), logits(model))
    assert all(m.weight.dtype == torch.int8 for m in loaded.modules() if isinstance(m, Int8Linear))
