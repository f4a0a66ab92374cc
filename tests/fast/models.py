"""Pairs of one int8 model, plain and optimised, and a count of the calls that took the fast path."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

import tiny
from llmint8 import optimize_for_inference, quantize_model

SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": tiny.BOS,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


def build(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A random int8 model of transformers' `kind`, in evaluation mode, with every vector and bias random."""
    config = getattr(transformers, f"{kind}Config")(**(SIZES | overrides))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    quantize_model(model)
    return model


def pair(kind: str = "Llama", dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """The same model twice: plain, and optimised."""
    model = build(kind, dtype, seed, **overrides)
    return model, optimize_for_inference(copy.deepcopy(model))


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Yields a list that gets the number of new tokens of every call that takes the fast path."""
    prepared = model.base_model.__dict__["forward"].engine.prepared()
    calls: list[int] = []
    run = prepared.run

    def counted(hidden: torch.Tensor, *arguments: Any) -> Any:
        calls.append(hidden.shape[1])
        return run(hidden, *arguments)

    prepared.run = counted
    try:
        yield calls
    finally:
        prepared.run = run


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random ids, none of which is special."""
    return torch.randint(1, 256, (batch, length), generator=torch.Generator().manual_seed(seed))
