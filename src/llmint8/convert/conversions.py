"""How transformers names the tensors of a checkpoint, extended to the scales of int8 weights.

transformers stores the experts of many models one by one (`experts.3.w1.weight`) and stacks them while it
loads. Its rules name weights only; here each rule that stacks or joins weights gets a twin for their scales,
so that a stored expert is an int8 layer like any other: `experts.3.w1.weight`, `experts.3.w1.SCB`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from llmint8.nn import Int8Experts

#: Operations that treat the rows of a weight and its scales alike, and the dimensions in which they do.
_ROWWISE = {"MergeModulelist": (0,), "Concatenate": (0, 1)}


def with_scales(conversions: Iterable[Any]) -> list[Any]:
    """transformers' rules of a model, each that names or stacks expert weights followed by one for their
    scales."""
    rules = [rule for rule in conversions if not _is_for_scales(rule)]
    extended: list[Any] = []
    for rule in rules:
        extended.append(rule)
        if not _makes_experts(rule):
            continue
        sources = [pattern.removesuffix("weight") + "SCB" for pattern in rule._original_source_patterns]
        targets = [pattern + "_SCB" for pattern in rule._original_target_patterns]
        operations = {"operations": list(rule.operations)} if hasattr(rule, "operations") else {}
        extended.append(rule.copy(sources, targets, **operations))
    return extended


def _is_for_scales(rule: Any) -> bool:
    return all(pattern.endswith("SCB") for pattern in rule._original_source_patterns)


def _makes_experts(rule: Any) -> bool:
    """Whether a rule turns stored `.weight`s into a parameter that is none: a weight of fused experts."""
    operations = getattr(rule, "operations", None)
    if operations is None:
        treats_scales_alike = type(rule).__name__ == "WeightRenaming"
    else:
        treats_scales_alike = any(
            type(operation).__name__ == "MergeModulelist" for operation in operations
        ) and all(operation.dim in _ROWWISE.get(type(operation).__name__, ()) for operation in operations)
    return (
        treats_scales_alike
        and all(re.search(r"\.weight$", pattern) for pattern in rule._original_source_patterns)
        and all(not pattern.endswith(".weight") for pattern in rule._original_target_patterns)
    )


def keep_saving_scales(model: nn.Module) -> None:
    """Let `save_pretrained` store the scales of a model's experts as it stores their weights."""
    if not any(isinstance(module, Int8Experts) for module in model.modules()):
        return
    loaded = getattr(model, "_weight_conversions", None)
    if loaded is None:
        mapping: Any = sys.modules.get("transformers.conversion_mapping")
        if mapping is None or not hasattr(model, "save_pretrained"):
            return
        # As transformers does when it saves a model that it has not loaded: a prefix is not made up.
        rules = mapping.get_model_conversion_mapping(model, add_legacy=False)
        loaded = [rule for rule in rules if type(rule).__name__ != "PrefixChange"]
    model._weight_conversions = with_scales(loaded)  # type: ignore[assignment]
