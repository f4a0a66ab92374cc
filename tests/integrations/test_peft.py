"""LoRA, rsLoRA and DoRA on int8 layers: what is computed, trained, saved and loaded again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModelForCausalLM

import llmint8
from integrations.adapters import IDS, TARGETS, adapted, int8_gpt2, int8_llama, logits, lora_config, randomize
from llmint8 import Int8Config, Int8Linear
from llmint8.errors import ConfigError
from llmint8.integrations.peft_lora import Int8LoraLinear
from tiny import save_tiny_checkpoint, tiny_gpt2, tiny_llama, tiny_mixture

KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def lora_layers(model: nn.Module) -> list[Int8LoraLinear]:
    return [m for m in model.modules() if isinstance(m, Int8LoraLinear)]


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_int8_layers_get_the_int8_lora_layer() -> None:
    model = get_peft_model(int8_llama(), lora_config())
    assert len(lora_layers(model)) == 2 * len(TARGETS)
    assert all(isinstance(layer.get_base_layer(), Int8Linear) for layer in lora_layers(model))


def test_float_layers_keep_peft_own() -> None:
    model = get_peft_model(tiny_llama(), lora_config())
    assert not lora_layers(model)


def test_a_fresh_lora_changes_no_bit() -> None:
    model = int8_llama()
    before = logits(model)
    assert torch.equal(logits(get_peft_model(model, lora_config())), before)


def test_the_magnitudes_of_dora_are_those_of_the_dequantised_weight() -> None:
    model = get_peft_model(int8_llama(), lora_config(use_dora=True))
    for layer in lora_layers(model):
        norms = torch.linalg.norm(layer.get_base_layer().dequantize(), dim=1)
        assert torch.equal(layer.lora_magnitude_vector["default"].weight, norms)


@kinds
@pytest.mark.parametrize("make", [int8_llama, int8_gpt2])
def test_outputs_and_gradients_are_those_of_the_dequantised_model(
    make: Callable[[], nn.Module], kind: dict[str, bool]
) -> None:
    """As near as int8 activations allow; with raw codes for weights they would differ by orders."""
    targets = TARGETS if make is int8_llama else ["c_attn", "c_proj"]
    model = make()
    llmint8.set_threshold(model, 1e-4)  # nearly all activations keep 16 bits, so little else differs
    float_model = llmint8.dequantize_model(copy.deepcopy(model))
    adapter = adapted(model, target_modules=targets, **kind)
    reference = adapted(float_model, target_modules=targets, fan_in_fan_out=make is int8_gpt2, **kind)
    torch.testing.assert_close(logits(adapter), logits(reference), rtol=0, atol=5e-3)
    ours, theirs = gradients(adapter), gradients(reference)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert torch.linalg.norm(gradient - theirs[name]) < 5e-3 * torch.linalg.norm(theirs[name]), name


@kinds
def test_training_lowers_the_loss_and_leaves_the_int8_weights_alone(kind: dict[str, bool]) -> None:
    model = get_peft_model(int8_llama(), lora_config(lora_dropout=0.1, **kind)).train()
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    before = [m.weight.clone() for m in layers]
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(m.weight, codes) for m, codes in zip(layers, before, strict=True))


@kinds
def test_a_saved_adapter_gives_the_same_bits_when_loaded(kind: dict[str, bool], tmp_path: Path) -> None:
    model = adapted(int8_llama(), **kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(int8_llama(), tmp_path)
    assert len(lora_layers(loaded)) == 2 * len(TARGETS)
    assert torch.equal(logits(loaded), logits(model))


def test_transformers_own_load_adapter_finds_the_layer_too(tmp_path: Path) -> None:
    model = adapted(int8_llama(), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path)
    loaded = int8_llama()
    loaded.load_adapter(str(tmp_path))
    assert len(lora_layers(loaded)) == 2 * len(TARGETS)
    assert torch.equal(logits(loaded), logits(model))


def test_a_float_model_reads_an_adapter_trained_in_int8(tmp_path: Path) -> None:
    model = adapted(int8_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    model.save_pretrained(tmp_path)
    assert LoraConfig.from_pretrained(tmp_path).fan_in_fan_out
    float_model = PeftModel.from_pretrained(tiny_gpt2(), tmp_path)
    torch.testing.assert_close(logits(float_model), logits(model), rtol=0, atol=0.5)


def test_several_adapters_are_switched_and_deleted(tmp_path: Path) -> None:
    model = adapted(int8_llama())
    first = logits(model)
    model.save_pretrained(tmp_path)
    model.add_adapter("second", lora_config(r=2, use_dora=True))
    randomize(model, 2, "second")
    model.set_adapter("second")
    second = logits(model)
    assert not torch.equal(first, second)
    model.load_adapter(tmp_path, "third")
    model.set_adapter("third")
    assert torch.equal(logits(model), first)
    model.delete_adapter("third")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_adapters_on_a_model_that_transformers_converted(tmp_path: Path) -> None:
    path = save_tiny_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=Int8Config())
    assert torch.equal(logits(adapted(model)), logits(adapted(int8_llama())))


def test_gradient_checkpointing_and_accumulation() -> None:
    plain = gradients(adapted(int8_llama()).train())
    model = prepare_model_for_kbit_training(int8_llama())
    assert model.is_gradient_checkpointing
    again = gradients(adapted(model).train())
    assert plain.keys() <= again.keys()
    assert all(torch.equal(gradient, again[name]) for name, gradient in plain.items())
    model.zero_grad()
    for row in IDS:
        (model(input_ids=row[None], labels=row[None]).loss / len(IDS)).backward()
    summed = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, gradient in summed.items():
        torch.testing.assert_close(gradient, again["base_model.model." + name], rtol=1e-3, atol=1e-5)


def test_preparing_casts_what_is_float_and_freezes_all() -> None:
    model = int8_llama().to(torch.bfloat16)
    prepared = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    assert {p.dtype for p in prepared.parameters()} == {torch.float32, torch.int8}
    assert not any(p.requires_grad for p in prepared.parameters())
    assert not prepared.is_gradient_checkpointing
    assert not hasattr(prepared, "is_loaded_in_8bit")  # accelerate would ask for bitsandbytes


def test_autocast_to_bfloat16() -> None:
    model = adapted(int8_llama()).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("method", ["pissa", "olora", "orthogonal"])
def test_an_initialisation_that_rewrites_the_weight_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=f"init_lora_weights='{method}'.*q_proj is int8.*then quantise"):
        get_peft_model(int8_llama(), lora_config(init_lora_weights=method))


def test_target_parameters_are_refused() -> None:
    linear = LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.weight"])
    with pytest.raises(ConfigError, match=r"cannot name an int8 weight \(weight of Int8Linear\)"):
        get_peft_model(int8_llama(), linear)
    mixture = tiny_mixture()
    llmint8.quantize_model(mixture)
    experts = LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    with pytest.raises(ConfigError, match="down_proj of Int8Experts"):
        get_peft_model(mixture, experts)


def test_the_attention_of_a_mixture_is_adapted() -> None:
    mixture = tiny_mixture()
    llmint8.quantize_model(mixture)
    model = adapted(mixture, target_modules=["q_proj", "v_proj"])
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients(model).values())
