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

from llmint8.checkpoint import TensorHeader, check_tensors, is_int8_weight, read_headers
from llmint8.config import Int8Config
from llmint8.convert import (
    check_skip_modules,
    dequantize_model,
    empty_like,
    is_linear,
    plan_conversion,
    replace_modules,
)
from llmint8.errors import CheckpointError, QuantizationError
from llmint8.integrations.pickled import read_pickled_headers
from llmint8.integrations.tensor_parallel import own_shape, prepare_layers, quantize_part, settle_scale
from llmint8.nn import Int8Conv1D, Int8Linear
from llmint8.numerics import ROW_MAJOR


class QuantizeOnLoad(ConversionOps):  # type: ignore[misc]
    """Turns float weights, as transformers reads them, into the three tensors of each `Int8Linear`."""

    def __init__(self, errors: list[QuantizationError]) -> None:
        #: transformers catches what `convert` raises and shows a traceback; the quantizer raises this later.
        self._errors = errors

    def convert(self, input_dict: dict[str, Any], *, model: nn.Module, **_: Any) -> dict[str, Tensor]:
        """{"...weight": float} to {"...weight": codes, "...SCB": absmax, "...weight_format": 0}."""
        tensors: dict[str, Tensor] = {}
        for key, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            module, kind = get_module_from_name(model, key)
            if not isinstance(module, Int8Linear) or kind != "weight":
                tensors[key] = tensor
                continue
            try:
                codes, absmax = quantize_part(_as_linear(tensor, module), module, key)
            except QuantizationError as error:
                self._errors.append(error)
                codes, absmax = (
                    torch.zeros(own_shape(module.weight), dtype=torch.int8),
                    torch.zeros(own_shape(module.SCB)),
                )
            name = key.removesuffix(".weight")
            tensors[key] = codes
            tensors[name + ".SCB"] = absmax
            tensors[name + ".weight_format"] = torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=codes.device)
        return tensors


def _as_linear(weight: Tensor, module: Int8Linear) -> Tensor:
    return weight.T if isinstance(module, Int8Conv1D) else weight


class Int8HfQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls while it loads a model with `quant_method: llmint8`."""

    quantization_config: Int8Config
    requires_calibration = False

    def __init__(self, quantization_config: Int8Config, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._errors: list[QuantizationError] = []

    @property
    def settings(self) -> Int8Config:
        """What decides which layers become int8, and how; quantizers of other formats translate theirs."""
        return self.quantization_config

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

    def update_parallel_plan(self, model: nn.Module, plan: dict[str, str]) -> None:
        """Let transformers cut int8 layers as `plan` says."""
        prepare_layers(model, plan)

    def get_quantize_ops(self) -> QuantizeOnLoad:
        """The operation that quantises a tensor as it is read."""
        return QuantizeOnLoad(self._errors)

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        skip = self.settings.skip_modules
        if not self.pre_quantized:
            check_skip_modules(model, skip)
        names = plan_conversion(model, skip).convert
        if self.pre_quantized:
            files = {str(f): str(f).endswith(".safetensors") for f in checkpoint_files or ()}
            stored = read_headers(file for file, safe in files.items() if safe)
            stored |= read_pickled_headers(file for file, safe in files.items() if not safe)
            check_tensors(stored)
            names = _stored_as_int8(model, stored, names)
        replace_modules(model, names, lambda _, source: _empty_like(source, self.settings))

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for error in self._errors:
            raise error
        remedy = "convert the model again" if self.pre_quantized else "check its config.json"
        for name, module in model.named_modules():
            if not isinstance(module, Int8Linear) or module.weight.is_meta:
                continue
            for key, tensor in {"weight": module.weight, "SCB": module.SCB, "bias": module.bias}.items():
                if tensor is not None and not getattr(tensor, "_is_hf_initialized", False):
                    raise CheckpointError(
                        f"{name}.{key} is missing in the checkpoint or does not fit, and int8 layers cannot "
                        f"start from random numbers; {remedy}, or add the module to skip_modules"
                    )
            settle_scale(module)
            if not getattr(module.weight_format, "_is_hf_initialized", False):
                module.weight_format.fill_(ROW_MAJOR)  # early bitsandbytes releases wrote none
            reason = module.invalid_state()
            if reason is not None:
                raise CheckpointError(f"{name}: {reason}; {remedy}")
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
        return dequantize_model(model, dtype)


def _stored_as_int8(
    model: nn.Module, stored: dict[str, TensorHeader], planned: tuple[str, ...]
) -> tuple[str, ...]:
    """The linear layers that a checkpoint holds as int8.

    What is stored decides, so a checkpoint loads whatever rule its layers were chosen by; the plan decides
    for a layer that the headers do not name, since it is renamed while it loads.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def is_int8(name: str) -> bool:
        # A base model can be loaded from the checkpoint of a whole one, and the other way round.
        for key in (f"{name}.weight", f"{prefix}{name}.weight", f"{name}.weight".removeprefix(prefix)):
            if key in stored:
                return is_int8_weight(key, stored[key])
        return name in planned

    return tuple(name for name, module in model.named_modules() if is_linear(module) and is_int8(name))


def _empty_like(source: nn.Module, config: Int8Config) -> Int8Linear:
    """An `Int8Linear` on the meta device for transformers to fill."""
    module = empty_like(source, config.threshold)
    # Otherwise transformers would draw random numbers into a missing weight.
    module._is_hf_initialized = True  # type: ignore[assignment]
    return module


# To import this module is to register: it may be under way when transformers' registry loads and asks for it.
auto.AUTO_QUANTIZATION_CONFIG_MAPPING["llmint8"] = Int8Config
auto.AUTO_QUANTIZER_MAPPING["llmint8"] = Int8HfQuantizer
