"""Let the linear layers of a float model compute as a scheme says, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmint8.analysis.schemes.experts import expert_layers, experts_forward, is_fused
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


def linear_layers(model: nn.Module, names: Iterable[str]) -> dict[str, list[Layer]]:
    """The linear layers of the named modules, by name: one of each, or one for each expert of a mixture.

    names: of `nn.Linear`, `Conv1D` or fused experts, whose two weights are names of their own.
    Raises InputError for any other module, and for weights that are no floats.
    """
    layers: dict[str, list[Layer]] = {}
    for name in names:
        module = model.get_submodule(name)
        weight = linear_weight(module)
        if is_fused(module):
            layers |= expert_layers(name, module)
        elif weight is not None:
            layers[name] = [Layer(name, weight.detach(), cast("Tensor | None", module.bias))]
        else:
            raise InputError(
                f"{name} is a {type(module).__name__} and no float linear layer; give the float model, "
                "and names of nn.Linear, Conv1D or fused experts"
            )
    return layers


@contextmanager
def applied(
    model: nn.Module, names: Iterable[str], scheme: Scheme, usage: dict[str, Usage] | None = None
) -> Iterator[dict[str, Usage]]:
    """Within the block, the named layers of `model` compute what `scheme` does; nothing gets a gradient.

    model: a float model; its weights are read, never changed. names: of modules, see `linear_layers`, such as
        `plan_conversion(model, None).convert`; all rows of one call count as one batch.
    usage: what an earlier block yielded, to go on counting there.

    Yields what the scheme kept at 16 bits, by layer, for those that were called. Afterwards every layer
    computes as before. Raises InputError for a module that holds no float linear layer.
    """
    usage = {} if usage is None else usage
    run = _runner(scheme, usage)
    forwards = {name: _forward(model, name, run) for name in names}
    changed: list[nn.Module] = []
    try:
        for name, forward in forwards.items():
            module: Any = model.get_submodule(name)
            if "forward" in vars(module):
                raise InputError(f"{name} has a forward of its own already; leave the other context first")
            module.forward = forward
            changed.append(module)
        yield usage
    finally:
        for module in changed:
            del vars(module)["forward"]


def _forward(model: nn.Module, name: str, run: Callable[[Tensor, Layer], Tensor]) -> Callable[..., Tensor]:
    layers = linear_layers(model, [name])
    module = model.get_submodule(name)
    if is_fused(module):
        return experts_forward(module, layers, run)
    (layer,) = layers[name]
    return lambda x: run(x, layer)


def _runner(scheme: Scheme, usage: dict[str, Usage]) -> Callable[[Tensor, Layer], Tensor]:
    """What computes one layer for an input `[..., K]`, and counts."""

    def run(x: Tensor, layer: Layer) -> Tensor:
        outputs, features = layer.weight.shape
        rows = x.detach().reshape(-1, features)
        with torch.no_grad():
            y, kept = scheme.linear(rows, layer)
        usage.setdefault(layer.name, Usage()).add(rows.shape[0], features, kept)
        return y.to(x.dtype).reshape(*x.shape[:-1], outputs)

    return run
