"""The transformers quantizer: `from_pretrained(path, quantization_config=Int8Config())`, and back.

On the fly, each float weight is quantised as it is read, so the float model never exists as a whole.
A saved model has plain tensors (`weight` int8, `SCB`, `weight_format`, `bias`), the keys bitsandbytes uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmint8 import reference
from llmint8.checkpoint import check_layout
from llmint8.config import Int8Config
from llmint8.convert import check_skip_modules, dequantize_model, is_conv1d, plan_conversion, replace_module
from llmint8.errors import CheckpointError, QuantizationError
from llmint8.nn import Int8Linear
from llmint8.numerics import ROW_MAJOR


class QuantizeOnLoad(ConversionOps):  # type: ignore[misc]
    """Turns one float weight, as transformers reads it, into the three tensors of an `Int8Linear`."""

    def __init__(self, transposed: frozenset[str]) -> None:
        self._transposed = transposed

    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """{"...weight": float} to {"...weight": codes, "...SCB": absmax, "...weight_format": 0}."""
        tensors: dict[str, Tensor] = {}
        for key, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            name = key.removesuffix(".weight")
            codes, absmax = reference.quantize_weight(weight.T if name in self._transposed else weight, key)
            tensors[key] = codes
            tensors[name + ".SCB"] = absmax
            tensors[name + ".weight_format"] = torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=codes.device)
        return tensors


class Int8HfQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls while it loads a model with `quant_method: llmint8`."""

    quantization_config: Int8Config
    requires_calibration = False

    def __init__(self, quantization_config: Int8Config, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._transposed: frozenset[str] = frozenset()

    @property
    def quantized_element_size(self) -> float:
        """Bytes of an int8 weight, by which transformers plans memory."""
        return 1

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse what would give wrong results: quantising on the fly into an offload folder."""
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise QuantizationError(
                "quantising on the fly cannot offload to disk: convert first with "
                "`llmint8 quantize MODEL OUT`, then load OUT with the same device_map"
            )

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Whether the named tensor arrives as floats and must become int8."""
        module, tensor = get_module_from_name(model, param_name)
        return not self.pre_quantized and isinstance(module, Int8Linear) and tensor == "weight"

    def get_quantize_ops(self) -> QuantizeOnLoad:
        """The operation that quantises a tensor as it is read."""
        return QuantizeOnLoad(self._transposed)

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        if not self.pre_quantized:
            check_skip_modules(model, self.quantization_config.skip_modules)
        plan = plan_conversion(model, self.quantization_config.skip_modules)
        sources = {name: model.get_submodule(name) for name in plan.convert}
        self._transposed = frozenset(name for name, source in sources.items() if is_conv1d(source))
        for name, source in sources.items():
            replace_module(model, name, _empty_like(source, self.quantization_config))
        if self.pre_quantized and checkpoint_files:
            check_layout(checkpoint_files)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, module in model.named_modules():
            if not isinstance(module, Int8Linear) or module.weight.is_meta:
                continue
            for key, tensor in {"weight": module.weight, "SCB": module.SCB}.items():
                if not getattr(tensor, "_is_hf_initialized", False):
                    raise CheckpointError(f"{name}.{key} is missing in the checkpoint")
            reason = module.invalid_state()
            if reason is not None:
                raise CheckpointError(f"{name}: {reason}")
        return model

    def is_serializable(self) -> bool:
        """`save_pretrained` works: the state is plain tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on top; the int8 weights themselves get no gradient."""
        return True

    @property
    def is_compileable(self) -> bool:
        """`torch.compile` sees one operator per layer."""
        return True

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return dequantize_model(model, dtype or torch.float32)


def _empty_like(source: nn.Module, config: Int8Config) -> Int8Linear:
    """An `Int8Linear` on the meta device, with the shape of a linear layer or `Conv1D`."""
    weight, bias = source.weight, source.bias
    assert isinstance(weight, Tensor)
    rows, features = weight.T.shape if is_conv1d(source) else weight.shape
    dtype = bias.dtype if isinstance(bias, Tensor) else None
    module = Int8Linear(features, rows, bias is not None, "meta", dtype, config.threshold)
    module._is_hf_initialized = True  # transformers would draw random numbers into a missing weight
    return module.train(source.training)


def register() -> None:
    """Enter the configuration and the quantizer into transformers' registries; again is harmless."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING["llmint8"] = Int8Config
    auto.AUTO_QUANTIZER_MAPPING["llmint8"] = Int8HfQuantizer
