"""LoRA adapters on a model, trained by transformers' Trainer on pieces of one text.

Source: LoRA, arXiv 2106.09685, as peft has it; on a quantised base, QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from llmint8.errors import InputError, LLMInt8Error

Pieces = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Settings:
    """targets: modules that get adapters, by the last part of their names, or peft's "all-linear".

    optimizer: a name that transformers' `TrainingArguments(optim=...)` takes.
    """

    steps: int
    batch: int
    rank: int = 8
    learning_rate: float = 1e-3
    targets: str | list[str] = "all-linear"
    optimizer: str = "adamw_8bit"
    seed: int = 0


@dataclass(frozen=True)
class Training:
    """model: with its adapters. losses: of the steps, nats a token. before, after: on what is held back."""

    model: Any
    losses: list[float]
    before: float
    after: float


def cut(ids: Tensor, length: int) -> tuple[Pieces, Pieces]:
    """Pieces of `length` tokens of a text, int64 `[T]`: nine tenths to learn from, and the last, held back.

    Raises InputError if there are not two.
    """
    pieces = [{"input_ids": part, "labels": part} for part in ids.split(length) if len(part) == length]
    if len(pieces) < 2:
        raise InputError(
            f"a text of {len(ids)} tokens has fewer than two pieces of {length}: one to learn from, one to "
            "be asked about; give more text, or shorter pieces"
        )
    held = max(1, len(pieces) // 10)
    return pieces[:-held], pieces[-held:]


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Keeps the loss of every step, says how many are done, and stops at one that is not finite."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.losses: list[float] = []
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if not logs or "loss" not in logs:
            return
        self.losses.append(float(logs["loss"]))
        if not math.isfinite(self.losses[-1]):
            raise LLMInt8Error(
                f"the loss of step {len(self.losses)} is not finite; train with a smaller learning rate, or "
                "in float32"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps)


def train_adapter(
    model: Any,
    text: tuple[Pieces, Pieces],
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
) -> Training:
    """Train LoRA adapters on a model whose own weights stay as they are.

    model: of transformers, float, int8 or 4-bit; it is changed in place. text: of `cut`. progress: called
        with (steps done, steps in all).

    Raises LLMInt8Error if a loss is not finite, InputError if no module has a name of `settings.targets`.
    """
    torch.manual_seed(settings.seed)
    config = LoraConfig(r=settings.rank, target_modules=settings.targets, task_type="CAUSAL_LM")
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"no adapter fits: {error}") from error
    watch = _Watch(progress)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch,
            per_device_eval_batch_size=settings.batch,
            learning_rate=settings.learning_rate,
            optim=settings.optimizer,
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would put the mean of earlier losses in place of a NaN
            save_strategy="no",
            report_to=[],
            seed=settings.seed,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(adapted, arguments, train_dataset=text[0], eval_dataset=text[1], callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        return Training(adapted, watch.losses, before, trainer.evaluate()["eval_loss"])
