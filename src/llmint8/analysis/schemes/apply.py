"""Let the linear layers of a float model compute as a scheme says, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmint8.analysis.schemes.scheme import Layer, Scheme
from llmint8.analysis.weights import linear_weight
from llmint8.errors import InputError


@dataclass
class Usage:
    """What a scheme kept at 16 bits in one layer.

    values, kept_values: activations in all, and those kept. columns, kept_columns: the same for columns of a
    call, added up over the calls. ever: bool `[K]`, the columns that were kept in any call; None before one.
    """

    values: int = 0
    kept_values: int = 0
    columns: int = 0
    kept_columns: int = 0
    ever: Tensor | None = None

    def add(self, rows: int, features: int, kept: Tensor | None) -> None:
        """Count one call; kept: as `Scheme.linear` returns it."""
        self.values += rows * features
        self.columns += features
        if kept is None:
            return
        by_column = kept.any(dim=0)
        self.kept_values += int(kept.sum()) * (rows // kept.shape[0])
        self.kept_columns += int(by_column.sum())
        self.ever = by_column if self.ever is None else self.ever | by_column

    @property
    def columns_ever(self) -> int:
        """How many columns were kept in any call."""
        return 0 if self.ever is None else int(self.ever.sum())


def linear_layers(model: nn.Module, names: Iterable[str]) -> dict[str, Layer]:
    """The named modules as layers. Raises InputError for one that is not a float linear layer."""
    layers = {}
    for name in names:
        module = model.get_submodule(name)
        weight = linear_weight(module)
        if weight is None or not weight.is_floating_point():
            raise InputError(
                f"{name} is a {type(module).__name__} and no float linear layer; give the float model, "
                "and names of nn.Linear or Conv1D modules"
            )
        layers[name] = Layer(name, weight.detach(), cast("Tensor | None", module.bias))
    return layers


@contextmanager
def applied(
    model: nn.Module, names: Iterable[str], scheme: Scheme, usage: dict[str, Usage] | None = None
) -> Iterator[dict[str, Usage]]:
    """Within the block, the named layers of `model` compute what `scheme` does; nothing gets a gradient.

    model: a float model; its weights are read, never changed. names: of `nn.Linear` or `Conv1D` modules,
        such as `plan_conversion(model, None).convert`; all rows of one call count as one batch.
    usage: what an earlier block yielded, to go on counting there.

    Yields what the scheme kept at 16 bits, by layer. Afterwards every layer computes as before.
    Raises InputError for a module that is no float linear layer.
    """
    layers = linear_layers(model, names)
    usage = {} if usage is None else usage
    changed: list[nn.Module] = []
    try:
        for name, layer in layers.items():
            module: Any = model.get_submodule(name)
            if "forward" in vars(module):
                raise InputError(f"{name} has a forward of its own already; leave the other context first")
            module.forward = _forward(scheme, layer, usage.setdefault(name, Usage()))
            changed.append(module)
        yield usage
    finally:
        for module in changed:
            del vars(module)["forward"]


def _forward(scheme: Scheme, layer: Layer, usage: Usage) -> Callable[[Tensor], Tensor]:
    outputs, features = layer.weight.shape

    def forward(x: Tensor) -> Tensor:
        rows = x.detach().reshape(-1, features)
        with torch.no_grad():
            y, kept = scheme.linear(rows, layer)
        usage.add(rows.shape[0], features, kept)
        return y.to(x.dtype).reshape(*x.shape[:-1], outputs)

    return forward
