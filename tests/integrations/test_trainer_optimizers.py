"""The names under which transformers' Trainer asks bitsandbytes for optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from llmint8 import optim
from tiny import VOCABULARY, tiny_llama

DATA = [{"input_ids": row, "labels": row} for row in torch.arange(64).reshape(8, 8)]


def trained(folder: Path, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, save_steps=1, **settings,
    )  # fmt: skip
    model = tiny_llama(hidden_size=64, intermediate_size=128)
    trainer = Trainer(model=model, args=arguments, train_dataset=DATA)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("name", "optimizer_class", "paged"),
    [
        ("adamw_bnb_8bit", optim.AdamW, False),
        ("paged_adamw_32bit", optim.AdamW, True),
        ("paged_lion_8bit", optim.Lion, True),
        ("rmsprop_bnb_8bit", optim.RMSprop, False),
        ("ademamix_8bit", optim.AdEMAMix, False),
    ],
)
def test_names(name: str, optimizer_class: type, paged: bool, tmp_path: Path) -> None:
    trainer = trained(tmp_path, optim=name, adam_beta2=0.98)
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is optimizer_class
    assert (optimizer.pages is not None) == paged
    group = optimizer.param_groups[0]
    assert group["optim_bits"] == (8 if "8bit" in name else 32)
    assert "betas" not in group or group["betas"][:2] == (0.9, 0.98)
    states = {name: optimizer.state[p]["state1"].dtype for name, p in trainer.model.named_parameters()}
    assert states["model.embed_tokens.weight"] == torch.float32
    assert states["model.layers.0.mlp.up_proj.weight"] == (torch.uint8 if "8bit" in name else torch.float32)
    assert VOCABULARY * 64 > 4096


def test_arguments_of_ademamix(tmp_path: Path) -> None:
    trainer = trained(tmp_path, optim="ademamix", optim_args="beta3=0.999,alpha=2.0,t_alpha=100")
    group = trainer.optimizer.optimizer.param_groups[0]
    assert (group["betas"][2], group["alpha"], group["t_alpha"], group["t_beta3"]) == (0.999, 2.0, 100, None)


def test_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = trained(tmp_path, optim="adamw_bnb_8bit")
    again = Trainer(
        model=tiny_llama(hidden_size=64, intermediate_size=128), args=whole.args, train_dataset=DATA
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_of_ones_own(tmp_path: Path) -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=128)
    own = optim.AdamW8bit(model.parameters(), lr=1e-3)
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    before = model.lm_head.weight.detach().clone()
    Trainer(model=model, args=arguments, train_dataset=DATA, optimizers=(own, None)).train()
    assert not torch.equal(before, model.lm_head.weight)
    assert own.state[model.lm_head.weight]["state1"].dtype == torch.uint8
