"""transformers' `Trainer` and int8 models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from integrations.adapters import IDS, int8_llama, int8_state, lora_config, same
from llmint8 import Int8Config
from tiny import save_tiny_checkpoint

DATA = [{"input_ids": row, "labels": row} for row in IDS.repeat(8, 1)]
STEPS = 4


def trainer(model: nn.Module, folder: Path, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        model=model, args=TrainingArguments(str(folder), **(settings | changes)), train_dataset=DATA
    )


def converted(folder: Path, way: str) -> nn.Module:
    if way == "in memory":
        return int8_llama()
    path = save_tiny_checkpoint(folder / "float")
    return AutoModelForCausalLM.from_pretrained(
        path, quantization_config=Int8Config(), **({"device_map": "cpu"} if way == "device map" else {})
    )


def with_adapter(model: nn.Module, checkpointing: bool) -> nn.Module:
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    torch.manual_seed(0)
    return get_peft_model(model, lora_config())


def adapter_state(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["in memory", "on loading", "device map"])
def test_training_lowers_the_loss_and_resumes_to_the_same_bits(
    tmp_path: Path, way: str, checkpointing: bool
) -> None:
    model = with_adapter(converted(tmp_path, way), checkpointing)
    state = int8_state(model)
    run = trainer(model, tmp_path / "run", gradient_checkpointing=checkpointing)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.3
    assert same(int8_state(model), state)
    again = with_adapter(converted(tmp_path, way), checkpointing)
    rerun = trainer(again, tmp_path / "run", gradient_checkpointing=checkpointing)
    rerun.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert same(adapter_state(again), adapter_state(model))


def test_bfloat16_and_gradient_accumulation(tmp_path: Path) -> None:
    model = with_adapter(int8_llama(), checkpointing=True)
    run = trainer(
        model,
        tmp_path,
        bf16=True,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
    )
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3


def test_a_loaded_int8_model_without_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Please attach trainable adapters"):
        trainer(converted(tmp_path, "on loading"), tmp_path)


def test_an_int8_model_in_memory_trains_what_stayed_float(tmp_path: Path) -> None:
    model = int8_llama()
    norm = model.model.norm.weight.detach().clone()
    state = int8_state(model)
    trainer(model, tmp_path, max_steps=1, save_strategy="no").train()
    assert same(int8_state(model), state)
    assert not torch.equal(model.model.norm.weight, norm)
