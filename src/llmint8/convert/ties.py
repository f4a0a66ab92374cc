"""Weights that modules share: an output head and the embedding that it is tied to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import nn

#: What an int8 module shares besides its weight.
_COMPANIONS = ("SCB", "weight_format")


def shared_weights(model: nn.Module) -> list[list[str]]:
    """The names of modules that share a weight, a list for each weight that has more than one.

    While transformers loads a model, nothing is shared yet: what it will tie counts too.
    """
    modules = {n: m for n, m in model.named_modules() if m._parameters.get("weight") is not None}
    tied = _tied_modules(model)
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in modules.items():
        source = modules.get(tied.get(name, name), module)
        owners[id(source.weight)].append(name)
    return [names for names in owners.values() if len(names) > 1]


def tie_companions(model: nn.Module, names: Iterable[str]) -> None:
    """Let those of the int8 modules `names` that share a weight share its scales.

    One that transformers ties to another has no scales of its own in the state of the model, so what is tied
    is stored once.
    """
    int8 = set(names)
    tied = _tied_modules(model)
    for owners in shared_weights(model):
        if not int8.issuperset(owners):
            continue
        modules: list[Any] = [model.get_submodule(name) for name in owners]
        first = next((m for name, m in zip(owners, modules, strict=True) if name not in tied), modules[0])
        for name, module in zip(owners, modules, strict=True):
            for key in _COMPANIONS if module is not first else ():
                module._buffers[key] = getattr(first, key)
                if name in tied:
                    module._non_persistent_buffers_set.add(key)


def _tied_modules(model: nn.Module) -> dict[str, str]:
    """Name of each module whose weight transformers ties to that of another, and the other's name."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    pairs = ((target, source) for target, source in tied.items() if target.endswith(".weight"))
    return {target.removesuffix(".weight"): source.removesuffix(".weight") for target, source in pairs}
