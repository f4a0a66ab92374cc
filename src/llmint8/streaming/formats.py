"""The formats that a conversion writes: names of an int8 layer's tensors, and `quantization_config`.

All hold the same codes. They differ in how scales are stored and in who reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import reference
from llmint8.config import Int8Config
from llmint8.errors import ConfigError
from llmint8.nn import is_conv1d, is_experts
from llmint8.numerics import ROW_MAJOR
from llmint8.streaming.shard import Output


class Llmint8:
    """Read by transformers where this library is imported."""

    suffixes: tuple[str, ...] = (".weight", ".SCB", ".weight_format")

    #: Of the tensors of a second weight digit.
    second_digit: tuple[str, str] = (".outlier_cols", ".weight_low")

    def outputs(self, layer: str, rows: int, features: int) -> tuple[Output, ...]:
        """The tensors of a layer `[N, K]`; codes first."""
        return (
            Output(f"{layer}.weight", torch.int8, (rows, features)),
            Output(f"{layer}.SCB", torch.float32, (rows,)),
            Output(f"{layer}.weight_format", torch.uint8, ()),
        )

    def scales(self, layer: str, absmax: Tensor) -> dict[str, Tensor]:
        """The tensors beside the codes, from the largest magnitude of each row, float32 `[N]`."""
        return {
            f"{layer}.SCB": absmax,
            f"{layer}.weight_format": torch.tensor(ROW_MAJOR, dtype=torch.uint8),
        }

    def float_by_rule(self, model: nn.Module) -> tuple[str, ...]:  # noqa: ARG002
        """The modules that a reader of the format expects as floats, whatever its settings say."""
        return ()

    def config(self, config: Int8Config, model: nn.Module, int8: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002
        """The `quantization_config` of a model whose modules `int8` are int8.

        Raises ConfigError for what the format cannot say.
        """
        return config.to_dict()


class BitsAndBytes(Llmint8):
    """Read by transformers where bitsandbytes is installed, with the same tensors."""

    def float_by_rule(self, model: nn.Module) -> tuple[str, ...]:
        """What transformers keeps in float32 for another reason is no layer of bitsandbytes."""
        from transformers.quantizers.quantizers_utils import should_convert_module

        kept = list(getattr(model, "_keep_in_fp32_modules", None) or ())
        linear = (name for name in _linear_layers(model) if not should_convert_module(name, kept))
        return (*linear, *_experts(model))

    def config(self, config: Int8Config, model: nn.Module, int8: Sequence[str]) -> dict[str, Any]:
        """Its fields; every linear layer that stays float is named, since naming any drops its defaults."""
        _refuse(config, "bitsandbytes")
        if isinstance(config.threshold, str):
            raise ConfigError('the format bitsandbytes knows no threshold "auto"; give a number, such as 6.0')
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "load_in_4bit": False,
            "llm_int8_threshold": config.threshold,
            "llm_int8_skip_modules": _float_layers(model, int8),
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
        }


class CompressedTensors(Llmint8):
    """Read by vLLM, and by transformers where compressed-tensors is installed. It has no outliers: every
    activation becomes int8, with a scale per token."""

    suffixes = (".weight", ".weight_scale")

    def outputs(self, layer: str, rows: int, features: int) -> tuple[Output, ...]:
        """The tensors of a layer `[N, K]`; codes first."""
        return (
            Output(f"{layer}.weight", torch.int8, (rows, features)),
            Output(f"{layer}.weight_scale", torch.float32, (rows, 1)),
        )

    def scales(self, layer: str, absmax: Tensor) -> dict[str, Tensor]:
        """Its scale is that of a code: absmax / 127, `[N, 1]`."""
        return {f"{layer}.weight_scale": reference.weight_scale(absmax)[:, None]}

    def config(self, config: Int8Config, model: nn.Module, int8: Sequence[str]) -> dict[str, Any]:
        """Symmetric int8 weights with a scale per row, and activations with one per token."""
        _refuse(config, "compressed-tensors")
        for name in int8:
            module = model.get_submodule(name)
            if is_conv1d(module) or is_experts(module):
                kind = "a Conv1D" if is_conv1d(module) else "a layer of experts"
                raise ConfigError(
                    f"{name} is {kind}, which the format compressed-tensors does not know; "
                    "write the format llmint8 or bitsandbytes"
                )
        symmetric = {"num_bits": 8, "type": "int", "symmetric": True}
        weights = symmetric | {"strategy": "channel", "dynamic": False}
        activations = symmetric | {"strategy": "token", "dynamic": True}
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": _float_layers(model, int8),
        }


FORMATS: dict[str, Llmint8] = {
    "llmint8": Llmint8(),
    "bitsandbytes": BitsAndBytes(),
    "compressed-tensors": CompressedTensors(),
}


def _float_layers(model: nn.Module, int8: Sequence[str]) -> list[str]:
    """The linear layers, subclasses too, that stay float: readers would otherwise take them for int8."""
    return sorted(set(_linear_layers(model)) - set(int8))


def _experts(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, module in model.named_modules() if is_experts(module))


def _refuse(config: Int8Config, name: str) -> None:
    if config.quantize_embeddings:
        raise ConfigError(f"the format {name} knows no int8 embeddings; write the format llmint8")
    if config.outlier_weights != "int8":
        raise ConfigError(f"the format {name} knows no int16 outlier weights; write the format llmint8")
    if config.module_thresholds is not None:
        raise ConfigError(f"the format {name} knows no thresholds of single layers; write the format llmint8")


def _linear_layers(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
