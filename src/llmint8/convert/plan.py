"""Which modules of a model become int8, decided by structure alone: it works on the meta device too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from llmint8.config import Int8Config, matches
from llmint8.convert.empty import is_convertible, is_linear
from llmint8.convert.report import Row
from llmint8.convert.ties import shared_weights
from llmint8.errors import ConfigError
from llmint8.nn import (
    INT8_MODULES,
    Int8Embedding,
    expert_weights,
    experts_as_linear,
    is_embedding,
    is_experts,
    weight_as_linear,
)
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


def check_skip_modules(model: nn.Module, skip_modules: Sequence[str] | None) -> None:
    """Raise ConfigError for a pattern that matches no module: a typing error would quantise silently."""
    names = [name for name, _ in model.named_modules()]
    for pattern in skip_modules or ():
        if not any(matches(name, pattern) for name in names):
            example = next((n for n, m in model.named_modules() if isinstance(m, nn.Linear)), "layers.0.fc1")
            raise ConfigError(f"skip_modules: {pattern!r} matches no module; names look like {example!r}")


def check_module_thresholds(model: nn.Module, config: Int8Config, int8: Iterable[str]) -> None:
    """Raise ConfigError for a pattern of `config.module_thresholds` that sets no threshold.

    model: int8 or still float. int8: the names of its modules that are int8, or become it.
    """
    names = [name for name in int8 if has_threshold(model.get_submodule(name))]
    for pattern, _ in config.module_thresholds or ():
        if not any(matches(name, pattern) for name in names):
            example = names[0] if names else "layers.0.fc1"
            raise ConfigError(
                f"module_thresholds: {pattern!r} matches no int8 layer; names look like {example!r}"
            )


def has_threshold(module: nn.Module) -> bool:
    """Whether a module that is int8, or becomes it, has a threshold: an embedding has none."""
    return not (isinstance(module, Int8Embedding) or is_embedding(module))


def plan_conversion(
    model: nn.Module, skip_modules: Sequence[str] | None, config: Int8Config | None = None
) -> Plan:
    """Decide for every module of `model`; nothing is skipped without a reason in the plan.

    config: whether heads and embeddings become int8; None for neither.
    """
    config = config or Int8Config()
    modules = dict(model.named_modules())
    special = _read_by_their_parent(model)
    if not config.quantize_head:
        special |= _output_heads(model)
    if not config.quantize_embeddings:
        embeddings = (m for m in modules.values() if isinstance(m, nn.Embedding))
        special |= {id(m): "embedding: looked up, not multiplied" for m in embeddings}
    decisions: dict[str, str | None] = {}
    for name, module in modules.items():
        if not _matrices(module):
            continue
        pattern = next((p for p in skip_modules or () if matches(name, p)), None)
        reason = f"skip_modules: {pattern}" if pattern else special.get(id(module))
        decisions[name] = reason or _reason(module)
    _keep_ties(model, decisions)
    skipped = []
    for name, reason in decisions.items():
        if reason is not None:
            size = sum(p.numel() * p.element_size() for p in _matrices(modules[name]))
            skipped.append(Row(name, type(modules[name]).__name__, reason, size, size))
    convert = tuple(name for name, reason in decisions.items() if reason is None)
    return Plan(convert, tuple(skipped), {name: i for i, name in enumerate(modules)})


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.dim() >= 2]


def _reason(module: nn.Module) -> str | None:
    """Why a module that holds a matrix stays as it is, or None if it becomes int8."""
    if isinstance(module, INT8_MODULES):
        return "int8 already"
    if not is_convertible(module):
        return _why_not_linear(module)
    if any(getattr(module, hooks) for hooks in _HOOKS) or hasattr(module, "_hf_hook"):
        return "carries hooks, which a replacement would lose"
    features = max(weight.shape[-1] for weight in convertible_weights(module).values())
    if features > MAX_FEATURES:
        return f"{features} input features exceed {MAX_FEATURES}: int32 sums could overflow"
    return None


def convertible_weights(module: nn.Module) -> dict[str, Tensor]:
    """The float weights of a convertible module by name, as `[N, K]` or `[E, N, K]`, views."""
    if is_experts(module):
        return {key: experts_as_linear(module, getattr(module, key)) for key in expert_weights(module)}
    return {"weight": weight_as_linear(module)}


def _keep_ties(model: nn.Module, decisions: dict[str, str | None]) -> None:
    """Leave a module float if it shares its weight, unless all that share it become int8 and one is an
    embedding: a single int8 weight then serves the embedding and the head."""
    for owners in shared_weights(model):
        embedding = any(isinstance(model.get_submodule(name), nn.Embedding) for name in owners)
        if embedding and all(name in decisions and decisions[name] is None for name in owners):
            continue
        for name in owners:
            if name in decisions and decisions[name] is None:
                decisions[name] = f"weight tied to {next(other for other in owners if other != name)}"


def _why_not_linear(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, (nn.Linear, nn.Embedding)):
        base = "nn.Linear" if isinstance(module, nn.Linear) else "nn.Embedding"
        return f"{kind} is a subclass of {base} with a forward of its own"
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    if not convolution and any(p.dim() == 3 for p in module.parameters(recurse=False)):
        return f"{kind} holds weights of three dimensions outside of transformers' experts interface"
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
    """Identities of the layers whose weights another module reads past them, and the reason."""
    found: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):  # hands them to a fused kernel of its own
            read: tuple[Any, ...] = (module.linear1, module.linear2)
        elif hasattr(module, "A_log"):  # a state-space mixer (Mamba, Jamba) multiplies with this one itself
            read = (getattr(module, "dt_proj", None),)
        elif hasattr(module, "_rescale_layers"):  # RWKV divides these weights in place
            blocks: Any = module.blocks
            read = tuple(m for b in blocks for m in (b.attention.output, b.feed_forward.value))
        else:
            continue
        reason = f"{type(module).__name__} reads the weight past the layer"
        found.update((id(layer), reason) for layer in read if isinstance(layer, nn.Linear))
    return found
