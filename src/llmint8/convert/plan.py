"""Which modules of a model become int8, decided by structure alone: it works on the meta device too."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from llmint8.convert.report import Row
from llmint8.errors import ConfigError
from llmint8.nn import Int8Linear, is_conv1d, weight_as_linear
from llmint8.numerics import MAX_FEATURES

#: Where torch keeps the hooks that run with a layer's forward or backward.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Plan:
    """convert: names of the modules to convert, in model order. skipped: everything else that holds a
    weight of two or more dimensions, with the reason. order: the position of each name in the model."""

    convert: tuple[str, ...]
    skipped: tuple[Row, ...]
    order: dict[str, int]


def matches(name: str, pattern: str) -> bool:
    """Whether a skip pattern names a module: its full name, a parent, its last parts, or parts within."""
    return re.search(rf"(^|\.){re.escape(pattern)}($|\.)", name) is not None


def check_skip_modules(model: nn.Module, skip_modules: Sequence[str] | None) -> None:
    """Raise ConfigError for a pattern that matches no module: a typing error would quantise silently."""
    names = [name for name, _ in model.named_modules()]
    for pattern in skip_modules or ():
        if not any(matches(name, pattern) for name in names):
            example = next((n for n, m in model.named_modules() if isinstance(m, nn.Linear)), "layers.0.fc1")
            raise ConfigError(f"skip_modules: {pattern!r} matches no module; names look like {example!r}")


def plan_conversion(model: nn.Module, skip_modules: Sequence[str] | None) -> Plan:
    """Decide for every module of `model`; nothing is skipped without a reason in the plan."""
    modules = dict(model.named_modules())
    special = _output_heads(model) | _read_by_their_parent(model)
    shared = _shared_weights(modules)
    convert, skipped = [], []
    for name, module in modules.items():
        weights = {key: p for key, p in module.named_parameters(recurse=False) if p.dim() >= 2}
        if not weights:
            continue
        pattern = next((p for p in skip_modules or () if matches(name, p)), None)
        reason = f"skip_modules: {pattern}" if pattern else special.get(id(module))
        if reason is None:
            reason = _reason(module, name, shared)
        if reason is None:
            convert.append(name)
        else:
            size = sum(p.numel() * p.element_size() for p in weights.values())
            skipped.append(Row(name, type(module).__name__, reason, size, size))
    return Plan(tuple(convert), tuple(skipped), {name: i for i, name in enumerate(modules)})


def is_linear(module: nn.Module) -> bool:
    """Whether `Int8Linear` can stand in for this: an `nn.Linear` itself, no subclass, or a `Conv1D`."""
    return type(module) is nn.Linear or is_conv1d(module)


def _reason(module: nn.Module, name: str, shared: dict[int, list[str]]) -> str | None:
    """Why a module that holds a matrix stays as it is, or None if it becomes int8."""
    if isinstance(module, nn.Embedding):
        return "embedding: looked up, not multiplied"
    if isinstance(module, Int8Linear):
        return "int8 already"
    if not is_linear(module):
        return _why_not_linear(module)
    weight = weight_as_linear(module)
    others = [other for other in shared[id(module.weight)] if other != name]
    if others:
        return f"weight tied to {others[0]}"
    if any(getattr(module, hooks) for hooks in _HOOKS) or hasattr(module, "_hf_hook"):
        return "carries hooks, which a replacement would lose"
    if weight.shape[1] > MAX_FEATURES:
        return f"{weight.shape[1]} input features exceed {MAX_FEATURES}: int32 sums could overflow"
    return None


def _why_not_linear(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return f"{kind} is a subclass of nn.Linear with a forward of its own"
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    if not convolution and any(p.dim() == 3 for p in module.parameters(recurse=False)):
        return f"{kind} holds weights of three dimensions, as fused experts do: not converted"
    return f"{kind} is not a linear layer"


def _output_heads(model: nn.Module) -> dict[int, str]:
    """Identities of the modules that models of transformers have as their output head.

    The head is what the model names so; a model that names none but wraps a base model (a classifier on an
    encoder) has the linear layers outside that base as its head.
    """
    heads: dict[int, str] = {}
    for module in model.modules():
        getter = getattr(module, "get_output_embeddings", None)
        if not callable(getter):
            continue
        head, base = getter(), getattr(module, "base_model", module)
        if isinstance(head, nn.Module):
            heads[id(head)] = "output head"
        elif isinstance(base, nn.Module) and base is not module:
            inside = {id(m) for m in base.modules()}
            outside = (m for m in module.modules() if id(m) not in inside and is_linear(m))
            heads.update((id(m), "output head") for m in outside)
    return heads


def _read_by_their_parent(model: nn.Module) -> dict[int, str]:
    """Identities of the layers whose weights torch's encoder layer hands to a fused kernel of its own."""
    encoders = (m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer))
    layers = (layer for encoder in encoders for layer in (encoder.linear1, encoder.linear2))
    return {id(layer): "nn.TransformerEncoderLayer reads the weight past the layer" for layer in layers}


def _shared_weights(modules: dict[str, nn.Module]) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)].append(name)
    return owners
