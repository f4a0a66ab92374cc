"""accelerate: int8 checkpoints into empty models, offloading, memory planning, and a training step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import (
    Accelerator,
    cpu_offload,
    disk_offload,
    dispatch_model,
    infer_auto_device_map,
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
)
from accelerate.utils import compute_module_sizes
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import llmint8
from integrations.adapters import IDS, adapted, int8_gpt2, int8_llama, int8_state, logits, same
from llmint8 import Int8Config, Int8Linear
from llmint8.errors import CheckpointError
from llmint8.integrations.accelerate import empty_int8_model
from llmint8.nn import Int8Embedding
from tiny import tiny_llama

MAKERS = {"llama": int8_llama, "gpt2": int8_gpt2}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def empty(folder: Path) -> nn.Module:
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.tie_weights()
    return empty_int8_model(model, folder).eval()


def half_on_disk(model: nn.Module) -> dict[str, str]:
    """Every module that holds tensors: the blocks on disk, the rest on the CPU."""
    names = [name for name, module in model.named_modules() if not list(module.children())]
    return {name: "disk" if ".layers." in name or ".h." in name else "cpu" for name in names}


@makers
@pytest.mark.parametrize("shard", ["50GB", "30KB"])
@pytest.mark.parametrize("way", ["auto", "cpu", "through disk"])
def test_a_loaded_model_answers_with_the_same_bits(
    make: Callable[[], nn.Module], shard: str, way: str, tmp_path: Path
) -> None:
    model = make()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    options: dict[str, Any] = {
        "auto": {"device_map": "auto"},
        "cpu": {"device_map": {"": "cpu"}},
        "through disk": {"device_map": {"": "cpu"}, "offload_state_dict": True},
    }[way]
    loaded = load_checkpoint_and_dispatch(empty(tmp_path), tmp_path, **options)
    assert same(int8_state(loaded), int8_state(model))
    assert torch.equal(logits(loaded), logits(model))


@makers
@pytest.mark.parametrize("offload_buffers", [False, True])
def test_blocks_offloaded_to_disk_answer_with_the_same_bits(
    make: Callable[[], nn.Module], offload_buffers: bool, tmp_path: Path
) -> None:
    model = make()
    model.save_pretrained(tmp_path / "saved")
    skeleton = empty(tmp_path / "saved")
    loaded = load_checkpoint_and_dispatch(
        skeleton,
        tmp_path / "saved",
        device_map=half_on_disk(skeleton),
        offload_folder=tmp_path / "offload",
        offload_buffers=offload_buffers,
    )
    assert all(m.weight.is_meta for m in loaded.modules() if isinstance(m, Int8Linear))
    for _ in range(2):
        assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_int8_head_and_embedding(tied: bool, on_disk: bool, tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=Int8Config(quantize_head=True, quantize_embeddings=True)
    )
    model.save_pretrained(tmp_path / "saved")
    skeleton = empty(tmp_path / "saved")
    options: dict[str, Any] = {"device_map": {"": "cpu"}}
    if on_disk:
        options = {"device_map": half_on_disk(skeleton), "offload_folder": tmp_path / "offload"}
    loaded = load_checkpoint_and_dispatch(skeleton, tmp_path / "saved", **options)
    assert isinstance(loaded.lm_head, Int8Linear)
    assert isinstance(loaded.model.embed_tokens, Int8Embedding)
    assert torch.equal(logits(loaded), logits(model))


def test_floats_are_cast_and_scales_are_not(tmp_path: Path) -> None:
    model = int8_llama()
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint_and_dispatch(
        empty(tmp_path), tmp_path, device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    assert same(int8_state(loaded), int8_state(model))
    assert torch.equal(
        logits(loaded), logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16))
    )


def test_an_int8_model_that_has_weights_takes_the_scales_too(tmp_path: Path) -> None:
    model = int8_llama()
    model.save_pretrained(tmp_path)
    other = tiny_llama(seed=1)
    llmint8.quantize_model(other)
    load_checkpoint_in_model(other, tmp_path, device_map={"": "cpu"})
    assert torch.equal(logits(other), logits(model))


def test_hooks_that_offload(tmp_path: Path) -> None:
    expected = logits(int8_llama())
    device = torch.device("cpu")
    on_cpu, on_disk, dispatched = int8_llama(), int8_llama(), int8_llama()
    cpu_offload(on_cpu, device)
    disk_offload(on_disk, str(tmp_path / "disk"), device)
    dispatch_model(dispatched, half_on_disk(dispatched), offload_dir=str(tmp_path / "dispatched"))
    for model in (on_cpu, on_disk, dispatched):
        assert torch.equal(logits(model), expected)


def test_memory_is_planned_with_one_byte_for_an_int8_weight(tmp_path: Path) -> None:
    int8_llama().save_pretrained(tmp_path)
    model = empty(tmp_path)
    sizes = compute_module_sizes(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    for name, layer in layers.items():
        assert sizes[name] == layer.weight.numel() + 4 * layer.out_features + 1
    memory = {0: sizes[""] + max(sizes["model.layers.0"], sizes["lm_head"]), "cpu": 10**9}
    blocks = {"no_split_module_classes": ["LlamaDecoderLayer"]}
    assert infer_auto_device_map(model, dict(memory), **blocks) == {"": 0}
    assert "cpu" in infer_auto_device_map(tiny_llama(), dict(memory), **blocks).values()


def test_prepare_and_train_a_step() -> None:
    model = adapted(int8_llama()).train()
    state = int8_state(model)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    for _ in range(8):
        with accelerator.accumulate(model):
            loss = model(input_ids=IDS, labels=IDS).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert same(int8_state(model), state)


def test_a_float_checkpoint_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    model = int8_llama()
    model.save_pretrained(tmp_path / "int8")
    tiny_llama().save_pretrained(tmp_path / "float")
    with pytest.raises(CheckpointError, match=r"_proj\.weight is int8 .* but the checkpoint holds F32 "):
        load_checkpoint_and_dispatch(empty(tmp_path / "int8"), tmp_path / "float", device_map={"": "cpu"})


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_what_a_checkpoint_cannot_be_is_refused(tmp_path: Path) -> None:
    int8_llama().save_pretrained(tmp_path)
    key = "model.layers.0.mlp.up_proj.SCB"
    good = load_file(tmp_path / "model.safetensors")[key]
    skeleton = empty(tmp_path)
    spoil(tmp_path, lambda t: t.update({key: good * float("nan")}))
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj: SCB holds a negative or non-finite"):
        load_checkpoint_and_dispatch(skeleton, tmp_path, device_map={"": "cpu"})
    spoil(tmp_path, lambda t: t.pop(key))
    with pytest.raises(CheckpointError, match=r"up_proj\.SCB is missing"):
        load_checkpoint_and_dispatch(skeleton, tmp_path, device_map={"": "cpu"})


def test_an_empty_model_of_another_shape_of_names_is_refused(tmp_path: Path) -> None:
    int8_gpt2().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0.*no layer of that name"):
        empty_int8_model(tiny_llama(), tmp_path)


def test_a_float_model_is_loaded_as_before(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    with init_empty_weights():
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    loaded = load_checkpoint_and_dispatch(skeleton, tmp_path, device_map={"": "cpu"})
    assert torch.equal(logits(loaded.eval()), logits(model))
