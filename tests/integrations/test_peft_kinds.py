"""Adapters other than LoRA: which work on int8 layers as peft builds them, and which are refused."""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
import torch
from peft import PeftConfig, PeftMixedModel, get_peft_model

import llmint8
from integrations.adapters import IDS, TARGETS, int8_llama, int8_state, logits, lora_config, randomize, same
from llmint8.errors import QuantizationError
from tiny import tiny_llama

#: Adapters whose forward pass calls the base layer, or reads its weight through `dequantize()`.
WORKING: dict[str, Callable[[], PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1, target_modules=TARGETS
    ),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=TARGETS),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=10, target_modules=TARGETS),
}
working = pytest.mark.parametrize("config", WORKING.values(), ids=WORKING)
FLOAT_ONLY: dict[str, Callable[[], PeftConfig]] = {
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=TARGETS),
    "SHIRA": lambda: peft.ShiraConfig(r=2, target_modules=TARGETS),
    "DELORA": lambda: peft.DeloraConfig(r=2, target_modules=TARGETS),
    "OSF": lambda: peft.OSFConfig(target_modules=TARGETS),
}


@working
def test_forward_and_gradients_are_those_of_the_dequantised_model(config: Callable[[], PeftConfig]) -> None:
    model = int8_llama(threshold=1e-4)  # nearly all activations keep 16 bits, so little else differs
    float_model = llmint8.dequantize_model(int8_llama())
    results = []
    for base in (model, float_model):
        torch.manual_seed(0)
        adapter = get_peft_model(base, config())
        randomize(adapter, 1)
        adapter(input_ids=IDS, labels=IDS).loss.backward()
        results.append(
            (logits(adapter), {n: p.grad for n, p in adapter.named_parameters() if p.requires_grad})
        )
    (ours, our_gradients), (theirs, their_gradients) = results
    assert not torch.allclose(ours, logits(int8_llama()), atol=0.05)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)
    assert any(g is not None and bool(g.any()) for g in our_gradients.values())
    for name, gradient in our_gradients.items():
        if gradient is not None:
            norm = torch.linalg.norm(their_gradients[name])
            assert torch.linalg.norm(gradient - their_gradients[name]) <= 5e-3 * norm + 1e-6, name


def test_ia3_trains() -> None:
    model = get_peft_model(int8_llama(), WORKING["ia3"]()).train()
    state = int8_state(model)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(5):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert same(int8_state(model), state)


@working
def test_a_merge_that_would_write_floats_over_codes_is_refused(config: Callable[[], PeftConfig]) -> None:
    model = get_peft_model(int8_llama(), config())
    state = int8_state(model)
    with pytest.raises(QuantizationError, match=r"q_proj: \w+ adapters cannot be merged into int8 weights"):
        model.merge_and_unload()
    with pytest.raises(QuantizationError, match="keep the adapter apart"):
        model.merge_adapter()
    assert same(int8_state(model), state)
    assert torch.equal(logits(model.unload()), logits(int8_llama()))


def test_the_same_merge_into_a_float_model_is_not_our_business() -> None:
    model = get_peft_model(tiny_llama(), WORKING["ia3"]())
    before = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), before)


def test_a_mixed_model_is_not_merged_either() -> None:
    model = PeftMixedModel(int8_llama(), lora_config(), "lora")
    model.add_adapter("other", WORKING["oft"]())
    model.set_adapter(["lora", "other"])
    state = int8_state(model)
    with pytest.raises(QuantizationError, match="oft adapters cannot be merged"):
        model.merge_and_unload()
    assert same(int8_state(model), state)


@pytest.mark.parametrize(("kind", "config"), FLOAT_ONLY.items(), ids=FLOAT_ONLY)
def test_adapters_that_compute_with_the_weight_are_refused(
    kind: str, config: Callable[[], PeftConfig]
) -> None:
    with pytest.raises(QuantizationError, match=f"{kind} adapters compute with the float weight.*use LoRA"):
        get_peft_model(int8_llama(), config())
    get_peft_model(tiny_llama(), config())
