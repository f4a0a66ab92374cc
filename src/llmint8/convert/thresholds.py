"""Set the thresholds of a model that is int8 already, and what its saved configuration says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from llmint8.config import Int8Config, Threshold
from llmint8.convert.model import saved_config
from llmint8.convert.plan import check_module_thresholds
from llmint8.errors import ConfigError, QuantizationError
from llmint8.nn import Int8Experts, Int8Linear


def set_threshold(model: nn.Module, threshold: Threshold, modules: Sequence[str] | None = None) -> None:
    """Set the threshold of int8 layers, and in the configuration that `save_pretrained` writes.

    threshold: 0, t > 0 or "auto", see `Int8Config`.
    modules: patterns as in `Int8Config.module_thresholds`; the threshold of all other layers stays. None for
        every layer: what was set by pattern before is gone.

    A model in bitsandbytes' format stays in it, but for "auto" and for thresholds by pattern, which that
    format cannot say: such a model is saved in ours from then on.

    Raises ConfigError for a bad threshold or a pattern that matches no int8 layer, QuantizationError if the
    model has none; then nothing was set.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (Int8Linear, Int8Experts))}
    if not layers:
        raise QuantizationError("the model has no int8 layer: convert it with quantize_model(model)")
    wanted = Int8Config(threshold)
    if modules is not None:
        if isinstance(modules, str) or not modules:
            raise ConfigError(f'modules must be a list of patterns, like ["down_proj"], got {modules!r}')
        wanted = Int8Config(module_thresholds=tuple((pattern, threshold) for pattern in modules))
    check_module_thresholds(model, wanted, layers)
    patterns = wanted.module_thresholds
    for name, layer in layers.items():
        if patterns is None or wanted.pattern_of(name) is not None:
            layer.threshold = wanted.threshold_of(name)
    _save(saved_config(model), wanted)


def _save(saved: Any, wanted: Int8Config) -> None:
    """saved: the configuration of a transformers model, or None. wanted: its thresholds are set."""
    given, patterns = getattr(saved, "quantization_config", None), wanted.module_thresholds
    if isinstance(given, dict) and given.get("quant_method") == "llmint8":  # as read from config.json
        given = Int8Config.from_dict(given)
    if isinstance(given, Int8Config):
        if patterns is None:
            changed = replace(given, threshold=wanted.threshold, module_thresholds=None)
        else:
            # The first pattern that matches decides, so the latest go first.
            others = [(p, t) for p, t in given.module_thresholds or () if p not in dict(patterns)]
            changed = replace(given, module_thresholds=(*patterns, *others))
        saved.quantization_config = changed
    elif given is not None and hasattr(given, "llm_int8_threshold"):
        if patterns is not None:  # the configuration of bitsandbytes has no word for it, nor for "auto"
            saved.quantization_config = replace(wanted, threshold=given.llm_int8_threshold)
        elif isinstance(wanted.threshold, float):
            given.llm_int8_threshold = wanted.threshold
        else:
            saved.quantization_config = wanted
