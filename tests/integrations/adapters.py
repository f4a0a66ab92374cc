"""Int8 models with adapters, and a few things to do with them."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import llmint8
from llmint8 import Int8Config, Int8Linear
from tiny import tiny_gpt2, tiny_llama

TARGETS = ["q_proj", "v_proj", "down_proj"]
#: One sequence of 12 bytes and another.
IDS = torch.tensor([list(b"merge and un"), list(b"merge them!?")])


def int8_llama(**config: Any) -> nn.Module:
    """The tiny Llama in int8."""
    model = tiny_llama()
    llmint8.quantize_model(model, Int8Config(**config))
    return model


def int8_gpt2() -> nn.Module:
    """The tiny GPT-2 in int8, whose layers were `Conv1D`."""
    model = tiny_gpt2()
    llmint8.quantize_model(model)
    return model


def lora_config(**changes: Any) -> LoraConfig:
    """Rank 4 on three kinds of layers; `changes` are LoraConfig's fields."""
    return LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | changes))


def adapted(model: nn.Module, seed: int = 1, **changes: Any) -> PeftModel:
    """The model with one adapter that does something: no part of it is at its initial value."""
    torch.manual_seed(seed)
    model = get_peft_model(model, lora_config(**changes))
    randomize(model, seed)
    return model


def randomize(model: nn.Module, seed: int, adapter: str = "default") -> None:
    """Add random numbers to the parameters of an adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if adapter in name.split("."):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def logits(model: nn.Module) -> Tensor:
    """`[2, 12, vocabulary]`, without gradient."""
    with torch.no_grad():
        return model(input_ids=IDS).logits


def int8_state(model: nn.Module) -> list[Tensor]:
    """Copies of the tensors of every int8 layer, in order."""
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    tensors = [t for m in layers for t in (m.weight, m.SCB, m.bias) if t is not None]
    return [t.detach().clone() for t in tensors]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether two lists of tensors hold the same bits."""
    return len(left) == len(right) and all(map(torch.equal, left, right))
