"""Weights that two modules share: an output head and the embedding that it is tied to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from llmint8.nn import INT8_MODULES

#: What an int8 module shares besides its weight.
_COMPANIONS = ("SCB", "weight_format")


def tie_companions(model: nn.Module, names: Iterable[str]) -> None:
    """Let the int8 modules `names` that share a weight share its scales too.

    A model of transformers is told so as well: it ties what it loads, and saves what is tied once.
    """
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    owners: dict[int, Any] = {}
    for name in names:
        module: Any = model.get_submodule(name)
        if not isinstance(module, INT8_MODULES) or "weight" not in module._parameters:
            continue
        first = owners.setdefault(id(module.weight), module)
        source = tied.get(f"{name}.weight", "").removesuffix(".weight")
        for key in _COMPANIONS:
            setattr(module, key, getattr(first, key))
            if source:
                tied[f"{name}.{key}"] = f"{source}.{key}"
