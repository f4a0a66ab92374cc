"""The transformers quantizer behind `BitsAndBytesConfig(load_in_4bit=True)`: its settings, our layers.

The configuration of the model stays a `BitsAndBytesConfig`, and what is saved is read by bitsandbytes too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module

from llmint8 import reference
from llmint8.convert import dequantize_model, replace_modules
from llmint8.errors import CheckpointError, ConfigError, QuantizationError
from llmint8.integrations.bitsandbytes_quantizer import device_map_or_default
from llmint8.nn import Linear4bit
from llmint8.nn.fourbit_state import FourbitState, read_state
from llmint8.numerics import FOURBIT_BLOCK


class FourbitHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads models with `Linear4bit` where bitsandbytes would put its own layer.

    bnb_4bit_quant_type, bnb_4bit_use_double_quant and llm_int8_skip_modules mean what they mean there.
    bnb_4bit_compute_dtype changes nothing: products and sums are float32, results have the input's dtype.

    Raises ConfigError for a bnb_4bit_quant_storage other than uint8.
    """

    quantization_config: Any
    requires_calibration = False
    serialized_names = {  # noqa: RUF012 - transformers' attribute
        "weight": [
            "weight",
            *(f"weight.{kind}" for kind in ("nested_absmax", "nested_quant_map", "quant_map", "absmax")),
            *(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")),
        ]
    }

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if quantization_config.bnb_4bit_quant_storage != torch.uint8:
            raise ConfigError(
                f"bnb_4bit_quant_storage={quantization_config.bnb_4bit_quant_storage} packs bytes into "
                "another dtype, which llmint8 does not do: leave it torch.uint8"
            )

    @property
    def quantized_element_size(self) -> float:
        """Bytes of a weight, by which transformers plans memory."""
        return 0.5

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Nothing is missing."""

    def update_device_map(self, device_map: Any) -> Any:
        """See `device_map_or_default`."""
        return device_map_or_default(device_map)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Whether the named tensor arrives as floats and must get 4 bits."""
        module, tensor = get_module_from_name(model, param_name)
        return not self.pre_quantized and isinstance(module, Linear4bit) and tensor == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that quantises a tensor as it is read."""
        return _Quantize(self)

    def get_load_operations(self) -> dict[str, Any]:
        """The operation that takes a stored layer over."""
        return {"deserialize": _Deserialize}

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        # By the name of bitsandbytes, transformers and accelerate would refuse `.to()`.
        model.quantization_method = "llmint8"  # type: ignore[assignment]
        config: Any = self.quantization_config
        kept = getattr(model, "_keep_in_fp32_modules", None)
        skip = self.get_modules_to_not_convert(model, config.llm_int8_skip_modules, kept)
        names = [
            name
            for name, module in model.named_modules()
            if type(module) is nn.Linear and should_convert_module(name, skip)
        ]

        def build(_: str, source: nn.Module) -> nn.Module:
            linear: Any = source
            new = Linear4bit(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                "meta",
                linear.weight.dtype,
                config.bnb_4bit_quant_type,
            )
            new._is_hf_initialized = True  # type: ignore[assignment]
            return new.train(source.training)

        replace_modules(model, names, build)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, module in model.named_modules():
            if not isinstance(module, Linear4bit):
                continue
            arrived = module.__dict__.pop(_ARRIVED, None)
            if isinstance(arrived, QuantizationError):
                raise arrived
            if arrived is None:
                remedy = "convert the model again" if self.pre_quantized else "check its config.json"
                raise CheckpointError(f"{name}.weight is missing in the checkpoint; {remedy}")
            module.set_state(arrived)
        return model

    def get_new_dtype(self, mapping: Any, tensor: Any, dtype: Any) -> Any:
        """Scales keep the dtype that they are stored in, not that of the codes."""
        return None if dtype == torch.uint8 else super().get_new_dtype(mapping, tensor, dtype)

    def is_serializable(self) -> bool:
        """`save_pretrained` works: the state is plain tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on top; the 4-bit weights themselves get no gradient."""
        return True

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return dequantize_model(model, dtype)


#: Where a layer keeps what belongs to its codes, or what was wrong with it, until all is loaded: transformers
#: copies the operations, and fills every buffer that no checkpoint names.
_ARRIVED = "_arrived"


def _only(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor


class _Quantize(ConversionOps):  # type: ignore[misc]
    """Turns a float weight, as transformers reads it, into codes; the layer keeps the scales."""

    def __init__(self, quantizer: FourbitHfQuantizer) -> None:
        self._quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], *, model: nn.Module, **_: Any) -> dict[str, Tensor]:
        """{"...weight": float} to {"...weight": uint8}."""
        config, done = self._quantizer.quantization_config, {}
        for key, value in input_dict.items():
            weight = _only(value)
            module, _name = get_module_from_name(model, key)
            kind = config.bnb_4bit_quant_type
            try:
                done[key], absmax = reference.quantize_4bit(weight, kind)
            except QuantizationError as error:
                setattr(module, _ARRIVED, QuantizationError(f"{key}: {error}"))
                done[key] = torch.zeros(module.weight.shape, dtype=torch.uint8)
                continue
            nested = offset = None
            if config.bnb_4bit_use_double_quant:
                absmax, nested, offset = reference.quantize_scales(absmax)
            shape = (module.out_features, module.in_features)
            state = FourbitState(kind, FOURBIT_BLOCK, weight.dtype, shape, absmax, nested, offset)
            setattr(module, _ARRIVED, state)
        return done


class _Deserialize(ConversionOps):  # type: ignore[misc]
    """Takes the tensors of a stored layer apart: codes for transformers, the rest for the layer."""

    def __init__(self, quantizer: FourbitHfQuantizer) -> None:
        """As transformers makes it; nothing of the quantizer is needed."""

    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        model: nn.Module,
        full_layer_name: str,
        **_: Any,
    ) -> dict[str, Tensor]:
        """{"weight": uint8, "weight.absmax": ..., ...} to {"weight": uint8}; other weights stay."""
        tensors = {key: _only(value) for key, value in input_dict.items()}
        module, _name = get_module_from_name(model, full_layer_name)
        if not isinstance(module, Linear4bit):
            return tensors
        weight = tensors.pop("weight")
        given = {key.removeprefix("weight."): tensor for key, tensor in tensors.items()}
        try:
            state = read_state(given, weight, (module.out_features, module.in_features))
            setattr(module, _ARRIVED, state)
        except QuantizationError as error:
            setattr(module, _ARRIVED, QuantizationError(f"{full_layer_name}: {error}"))
        return {"weight": weight}
