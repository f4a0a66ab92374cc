"""A small network, its data, and a loop: what the tests of optimizers train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import optim

#: Every optimizer with its 8-bit twin, torch's equal in 32 bits if there is one, and arguments for all three.
PAIRS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "Adam": (optim.Adam, optim.Adam8bit, torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0.01}),
    "AdamW": (optim.AdamW, optim.AdamW8bit, torch.optim.AdamW, {"lr": 1e-3, "betas": (0.8, 0.95)}),
    "AdEMAMix": (optim.AdEMAMix, optim.AdEMAMix8bit, None, {"lr": 1e-3, "t_alpha": 20, "t_beta3": 20}),
    "LAMB": (optim.LAMB, optim.LAMB8bit, None, {"lr": 1e-2, "weight_decay": 0.01}),
    "SGD": (
        optim.SGD, optim.SGD8bit, torch.optim.SGD,
        {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    ),
    "LARS": (optim.LARS, optim.LARS8bit, None, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
    "Lion": (optim.Lion, optim.Lion8bit, None, {"lr": 1e-4, "weight_decay": 0.1}),
    "RMSprop": (optim.RMSprop, optim.RMSprop8bit, torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5}),
    "Adagrad": (
        optim.Adagrad, optim.Adagrad8bit, torch.optim.Adagrad,
        {"lr": 1e-2, "lr_decay": 0.01, "initial_accumulator_value": 0.1},
    ),
}  # fmt: skip
PAGED = {
    "Adam": (optim.PagedAdam, optim.PagedAdam8bit),
    "AdamW": (optim.PagedAdamW, optim.PagedAdamW8bit),
    "AdEMAMix": (optim.PagedAdEMAMix, optim.PagedAdEMAMix8bit),
    "Lion": (optim.PagedLion, optim.PagedLion8bit),
}
X = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
Y = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The first weight has 12,288 elements, and state in 8 bits; all others are small."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 16)).to(dtype)


def loss_of(model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype
    return ((model(X.to(dtype)).float() - Y) ** 2).mean()


def train(
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], steps: int = 10, **settings: Any
) -> tuple[nn.Sequential, torch.optim.Optimizer, float]:
    """The trained network, its optimizer, and the loss."""
    model = network(**settings)
    optimizer = make(model.parameters())
    go_on(model, optimizer, steps)
    return model, optimizer, loss_of(model).item()


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
