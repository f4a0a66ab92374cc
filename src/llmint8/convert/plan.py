"""Which modules of a model become int8, decided by structure alone: it works on the meta device too."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llmint8.errors import ConfigError
from llmint8.numerics import MAX_FEATURES
from llmint8.convert.report import Row


@dataclass(frozen=True)
class Plan:
    """convert: names of the modules to convert, in model order. skipped: everything else that holds a
    weight of two or more dimensions, with the reason. order: the position of each name in the model."""

    convert: tuple[str, ...]
    skipped: tuple[Row, ...]
    order: dict[str, int]


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`, a linear layer with weight `[K, N]` (GPT-2), told by its name
    so that transformers need not be imported."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def matches(name: str, pattern: str) -> bool:
    """Whether a skip pattern names a module: its full name, a parent, its last parts, or whole parts within."""
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
    heads, shared = _output_heads(model), _shared_weights(modules)
    convert, skipped = [], []
    for name, module in modules.items():
        weights = {key: p for key, p in module.named_parameters(recurse=False) if p.dim() >= 2}
        if not weights:
            continue
        pattern = next((p for p in skip_modules or () if matches(name, p)), None)
        reason = f"skip_modules: {pattern}" if pattern else _reason(module, name, heads, shared)
        if reason is None:
            convert.append(name)
        else:
            size = sum(p.numel() * p.element_size() for p in weights.values())
            skipped.append(Row(name, type(module).__name__, reason, size, size))
    return Plan(tuple(convert), tuple(skipped), {name: i for i, name in enumerate(modules)})


def _reason(module: nn.Module, name: str, heads: set[int], shared: dict[int, list[str]]) -> str | None:
    """Why a module that holds a matrix stays as it is, or None if it becomes int8."""
    linear = type(module) is nn.Linear or is_conv1d(module)
    if id(module) in heads:
        return "output head"
    if isinstance(module, nn.Embedding):
        return "embedding: looked up, not multiplied"
    if not linear:
        if isinstance(module, nn.Linear):
            return f"{type(module).__name__} is a subclass of nn.Linear with a forward of its own"
        return f"{type(module).__name__} is not a linear layer"
    weight = module.weight
    assert isinstance(weight, Tensor)
    others = [other for other in shared[id(weight)] if other != name]
    if others:
        return f"weight tied to {others[0]}"
    if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"):
        return "carries hooks or parametrizations, which a replacement would lose"
    features = weight.shape[0] if is_conv1d(module) else weight.shape[1]
    if features > MAX_FEATURES:
        return f"{features} input features exceed {MAX_FEATURES}: int32 sums could overflow"
    return None


def _output_heads(model: nn.Module) -> set[int]:
    """Identities of the modules that models of transformers name as their output head."""
    heads = set()
    for module in model.modules():
        getter = getattr(module, "get_output_embeddings", None)
        head = getter() if callable(getter) else None
        if isinstance(head, nn.Module):
            heads.add(id(head))
    return heads


def _shared_weights(modules: dict[str, nn.Module]) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)].append(name)
    return owners
