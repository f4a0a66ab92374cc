"""The transformers quantizer: `from_pretrained(path, quantization_config=Int8Config())`, and back.

On the fly, each float weight is quantised as it is read, so the float model never exists as a whole (but with
`outlier_weights="int16"` it is loaded, reads a text, and is converted then).
A saved model has plain tensors (`weight` int8, `SCB`, `weight_format`, `bias`), the keys bitsandbytes uses.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmint8.checkpoint import check_loaded_files, check_tensors, read_headers
from llmint8.config import Int8Config, Threshold
from llmint8.convert import (
    check_module_thresholds,
    check_skip_modules,
    default_calibration_ids,
    dequantize_model,
    empty_like,
    keep_saving_scales,
    plan_conversion,
    quantize_model,
    replace_modules,
    tie_companions,
    with_scales,
)
from llmint8.errors import CheckpointError, QuantizationError
from llmint8.integrations.pickled import read_pickled_headers
from llmint8.integrations.quantize_on_load import QuantizeOnLoad, is_codes
from llmint8.integrations.stored import stored_as_int8, stored_columns
from llmint8.integrations.tensor_parallel import (
    is_spread,
    prepare_layers,
    settle_scale,
    settle_second_digit,
)
from llmint8.nn import INT8_MODULES, Int8Experts, Int8Linear
from llmint8.numerics import ROW_MAJOR


class Int8HfQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls while it loads a model with `quant_method: llmint8`."""

    quantization_config: Int8Config
    requires_calibration = False

    def __init__(self, quantization_config: Int8Config, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._errors: list[QuantizationError] = []
        #: What the float model reads to find columns with 16-bit weights.
        self._calibration_ids: torch.Tensor | None = None

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
        return not self.pre_quantized and is_codes(module, tensor)

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
        names = plan_conversion(model, skip, self.settings).convert
        if not self.pre_quantized:
            check_module_thresholds(model, self.settings, names)
        if self._runs_float_model:
            self._calibration_ids = default_calibration_ids(model)  # before the weights: it may not be there
            for name in names:  # otherwise transformers would draw random numbers into a missing weight
                model.get_submodule(name)._is_hf_initialized = True  # type: ignore[assignment]
            return
        columns: dict[str, int] = {}
        if self.pre_quantized:
            check_loaded_files(checkpoint_files or (), str(getattr(model.config, "name_or_path", "")))
            files = {str(f): str(f).endswith(".safetensors") for f in checkpoint_files or ()}
            stored = read_headers(file for file, safe in files.items() if safe)
            stored |= read_pickled_headers(file for file, safe in files.items() if not safe)
            check_tensors(stored)
            names, columns = stored_as_int8(model, stored, names), stored_columns(model, stored)

        def build(name: str, source: nn.Module) -> nn.Module:
            return _empty_like(source, self.settings.threshold_of(name), columns.get(name, 0))

        replace_modules(model, names, build)
        tie_companions(model, names)

    @property
    def _runs_float_model(self) -> bool:
        """Whether columns are found by the float model, which is then loaded as a whole and converted."""
        return not self.pre_quantized and self.settings.outlier_weights == "int16"

    def update_weight_conversions(self, weight_conversions: list[Any], model: nn.Module) -> list[Any]:
        """transformers' rules of names and shapes, with rules for the scales."""
        rules: list[Any] = super().update_weight_conversions(with_scales(weight_conversions), model)
        return rules

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        if self._runs_float_model:
            self._convert_whole(model)
        for error in self._errors:
            raise error
        tie_companions(model, (n for n, m in model.named_modules() if isinstance(m, INT8_MODULES)))
        remedy = "convert the model again" if self.pre_quantized else "check its config.json"
        for name, module in model.named_modules():
            if not isinstance(module, INT8_MODULES):
                continue
            tensors = module.tensors()
            if any(tensor.is_meta for tensor in tensors.values()):
                continue  # offloaded to disk
            for key, tensor in tensors.items():
                if not self._runs_float_model and not getattr(tensor, "_is_hf_initialized", False):
                    raise _missing(f"{name}.{key}", remedy)
            if isinstance(module, Int8Linear):
                settle_scale(module)
                settle_second_digit(module)
            if not isinstance(module, Int8Experts) and not getattr(
                module.weight_format, "_is_hf_initialized", False
            ):
                module.weight_format.fill_(ROW_MAJOR)  # early bitsandbytes releases wrote none
            reason = module.invalid_state()
            if reason is not None:
                raise CheckpointError(f"{name}: {reason}; {remedy}")
        keep_saving_scales(model)
        # transformers refuses these casts for every quantised model; here they leave codes and scales alone.
        for cast in ("half", "float"):
            setattr(model, cast, functools.partial(getattr(nn.Module, cast), model))
        return model

    def _convert_whole(self, model: nn.Module) -> None:
        if is_spread(model):
            raise QuantizationError(
                'outlier_weights="int16" runs the float model once, on one device, and this one is spread '
                "over several: load it without device_map, offloading and tensor parallelism, or convert it "
                "first with `llmint8 quantize MODEL OUT --outlier-weights int16` and load OUT"
            )
        for name in plan_conversion(model, self.settings.skip_modules, self.settings).convert:
            for key, tensor in model.get_submodule(name).named_parameters(recurse=False):
                if not getattr(tensor, "_is_hf_initialized", False):
                    raise _missing(f"{name}.{key}", "check its config.json")
        quantize_model(model, self.settings, calibration_ids=self._calibration_ids)

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


def _missing(tensor: str, remedy: str) -> CheckpointError:
    return CheckpointError(
        f"{tensor} is missing in the checkpoint or does not fit, and int8 layers cannot start from random "
        f"numbers; {remedy}, or add the module to skip_modules"
    )


def _empty_like(source: nn.Module, threshold: Threshold, outliers: int) -> nn.Module:
    """An int8 module on the meta device for transformers to fill."""
    module = empty_like(source, threshold, outliers)
    # Otherwise transformers would draw random numbers into a missing weight.
    module._is_hf_initialized = True  # type: ignore[assignment]
    return module


# To import this module is to register: it may be under way when transformers' registry loads and asks for it.
auto.AUTO_QUANTIZATION_CONFIG_MAPPING["llmint8"] = Int8Config
auto.AUTO_QUANTIZER_MAPPING["llmint8"] = Int8HfQuantizer
