"""The transformers quantizer behind `BitsAndBytesConfig(load_in_8bit=True)`: its settings, our layers.

The configuration of the model stays a `BitsAndBytesConfig`, so what is saved is read by bitsandbytes too.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from llmint8.config import Int8Config
from llmint8.convert import is_linear
from llmint8.errors import ConfigError
from llmint8.integrations.transformers import Int8HfQuantizer
from llmint8.nn import INT8_MODULES, Int8Linear


class BitsAndBytesQuantizer(Int8HfQuantizer):
    """Loads models with `Int8Linear` where bitsandbytes would put its own layer.

    llm_int8_threshold is the threshold, per element of a row. llm_int8_skip_modules is read by the rules of
    bitsandbytes (start, end or regular expression of a name) and adds to the modules that stay float anyhow.
    llm_int8_enable_fp32_cpu_offload permits nothing that needs a permission here: layers on the CPU are int8.

    Raises ConfigError for llm_int8_has_fp16_weight, and for a threshold below 0.
    """

    quantization_config: Any

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if quantization_config.llm_int8_has_fp16_weight:
            raise ConfigError(
                "llm_int8_has_fp16_weight=True keeps float weights and quantises them in every call, which "
                "llmint8 does not do: leave it False, and train adapters (LoRA) on the int8 model"
            )
        self._settings = Int8Config(quantization_config.llm_int8_threshold)

    @property
    def settings(self) -> Int8Config:
        """The threshold, and the full name of every module that `llm_int8_skip_modules` means."""
        return self._settings

    def update_device_map(self, device_map: Any) -> Any:
        """See `device_map_or_default`."""
        return device_map_or_default(device_map)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:  # type: ignore[override]
        # By the name of bitsandbytes, transformers and accelerate would refuse `.to()`.
        model.quantization_method = "llmint8"  # type: ignore[assignment]
        # Readers with bitsandbytes expect floats in what transformers keeps in float32 for another reason.
        kept = cast("set[str] | None", getattr(model, "_keep_in_fp32_modules", None))
        patterns = [*(self.quantization_config.llm_int8_skip_modules or ()), *(kept or ())]
        if patterns:
            skipped = tuple(n for n in _names_of_weights(model) if not should_convert_module(n, patterns))
            self._settings = Int8Config(self._settings.threshold, skipped or None)
        super()._process_model_before_weight_loading(model, **kwargs)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        model = super()._process_model_after_weight_loading(model, **kwargs)
        model.is_loaded_in_8bit = True  # type: ignore[assignment] # peft and accelerate ask for it
        if not self.pre_quantized:
            cast(Any, model.config).quantization_config = self._saved_config(model)
        return model

    def _saved_config(self, model: nn.Module) -> Any:
        """The given configuration with every float layer by name, since bitsandbytes drops its defaults for a
        list; or ours, if the model holds int8 modules of a kind that bitsandbytes has not."""
        if any(isinstance(m, INT8_MODULES) and not isinstance(m, Int8Linear) for m in model.modules()):
            return self.settings
        config = copy.copy(self.quantization_config)
        config.llm_int8_skip_modules = [name for name, m in model.named_modules() if is_linear(m)]
        return config


def device_map_or_default(device_map: Any) -> Any:
    """Without a device_map a model goes where bitsandbytes would put it: the GPU, if there is one."""
    if device_map is None:
        return {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    return device_map


def _names_of_weights(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if any(p.dim() >= 2 for p in module.parameters(recurse=False))
    ]
