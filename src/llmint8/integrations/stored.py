"""Which modules of a model a checkpoint holds as int8, told from its headers."""

from __future__ import annotations

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from llmint8.checkpoint import TensorHeader
from llmint8.convert import is_convertible, with_scales
from llmint8.nn import expert_weights, is_experts


def stored_as_int8(
    model: nn.Module, stored: dict[str, TensorHeader], planned: tuple[str, ...]
) -> tuple[str, ...]:
    """The names of the modules whose weights are stored as int8.

    model: as it is before any module is replaced. stored: what the files hold. planned: what the rules of
    conversion choose; they decide for a module that the headers do not name.

    What is stored decides, so a checkpoint loads whatever rule its layers were chosen by.
    """
    by_name = _by_name(model, stored)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}

    def is_int8(name: str, module: nn.Module) -> bool:
        for weight in expert_weights(module) if is_experts(module) else ("weight",):
            key = f"{name}.{weight}"
            others = [tied.get(key), *(target for target, source in tied.items() if source == key)]
            header = next((by_name[k] for k in (key, *others) if k in by_name), None)
            if header is not None:
                return header.dtype == "I8"
        return name in planned

    return tuple(
        name for name, module in model.named_modules() if is_convertible(module) and is_int8(name, module)
    )


def stored_columns(model: nn.Module, stored: dict[str, TensorHeader]) -> dict[str, int]:
    """How many columns of each layer have a second weight digit, by the name of the layer in the model."""
    by_name = _by_name(model, {k: h for k, h in stored.items() if k.endswith(".outlier_cols")})
    return {name.removesuffix(".outlier_cols"): header.shape[0] for name, header in by_name.items()}


def _by_name(model: nn.Module, stored: dict[str, TensorHeader]) -> dict[str, TensorHeader]:
    """The headers under the names that the tensors have in the model, by transformers' own rules."""
    names = dict.fromkeys(model.state_dict(), True)
    rules = with_scales(get_model_conversion_mapping(model))
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = getattr(model, "base_model_prefix", "")
    found: dict[str, TensorHeader] = {}
    for key, header in stored.items():
        name, _ = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:
            name, _ = rename_source_key(key, [], [], prefix, names)
        found[name] = header
    return found
