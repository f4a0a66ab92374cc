"""LoRA and DoRA on an `Int8Linear`: peft's layer, but for how adapters are merged into int8 codes.

Merging always starts from the original codes and rounds once, whatever was merged before; the original
tensors are kept while adapters are merged, so un-merging restores them bit for bit.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from llmint8 import reference
from llmint8.errors import ConfigError, QuantizationError
from llmint8.integrations.merging import measure, set_merge_error
from llmint8.nn import Int8Linear

#: Initialisations that leave the base weight alone; the others subtract from it what the adapter holds.
_INITIALISATIONS = (True, False, "gaussian", "eva")


class Int8LoraLinear(Linear):  # type: ignore[misc]
    """The LoRA layer around an `Int8Linear`, `[..., K]` to `[..., N]`.

    Raises ConfigError for an initialisation that rewrites the base weight.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        kwargs.pop("parameter_name", None)
        #: The tensors of the base layer before adapters were merged into it: codes, SCB, bias, low digits.
        self._original: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None = None
        self._name = kwargs.get("target_name", "")
        super().__init__(base_layer, adapter_name, config=_row_major(config), **kwargs)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """What peft's configuration may ask for besides plain LoRA."""
        return {(): None, ("use_dora",): DoraLinearVariant}

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Add an adapter; see the class for what is refused."""
        if config.init_lora_weights not in _INITIALISATIONS:
            raise ConfigError(
                f"init_lora_weights={config.init_lora_weights!r} needs or rewrites a float base weight, and "
                f"{self._name or 'the layer'} is int8: initialise on the float model, then quantise it"
            )
        super().update_layer(adapter_name, r, lora_alpha, config=_row_major(config), **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Round the base weight plus the adapters to int8; `merge_report` tells the error.

        safe_merge: weights are checked either way, and nothing is changed if one is not finite.
        adapter_names: None for the active ones.
        Raises QuantizationError for a weight or bias that is not finite, or a bias without a base bias.
        """
        asked = check_adapters_to_merge(self, adapter_names)
        names = [name for name in asked if name in self.lora_A]
        if not names:
            return
        base = self._base()
        tensors = self._original or (base.weight.data, base.SCB.data, _data(base.bias), base.weight_low)
        adapters = [*self.merged_adapters, *names]
        with torch.no_grad():
            columns, low = base.outlier_cols, tensors[3]
            weight = reference.dequantize_weight(*tensors[:2], torch.float32, columns, low)
            merged, bias_change = self._merged(weight, adapters)
            codes, absmax = self._quantized(merged, bias_change, names)
            if columns is not None:
                low = reference.quantize_low_digit(merged, codes, absmax, columns)
            rounded = reference.dequantize_weight(codes, absmax, torch.float32, columns, low)
            error = measure(adapters, weight, merged, rounded)
        base.weight.data, base.SCB.data, base.weight_low = codes, absmax, low
        bias = tensors[2]
        if bias is not None and bias_change is not None:
            base.bias.data = (bias.float() + bias_change).to(bias.dtype)
        self._original = tensors
        self.merged_adapters.extend(names)
        set_merge_error(base, error)
        warnings.warn(
            "merging an adapter rounds the merged weights to int8: llmint8.merge_report(model) says how far "
            "they are from the exact ones",
            stacklevel=2,
        )

    def unmerge(self) -> None:
        """Restore the codes, scales and bias from before any merge, bit for bit."""
        if self._original is None:
            warnings.warn("no adapter is merged: nothing to undo", stacklevel=2)
            return
        base = self._base()
        device = base.weight.device  # the model may have moved since
        codes, absmax, bias, low = self._original
        base.weight.data, base.SCB.data = codes.to(device), absmax.to(device)
        base.weight_low = None if low is None else low.to(device)
        if bias is not None:
            base.bias.data = bias.to(device, base.bias.dtype)
        self._original = None
        self.merged_adapters.clear()
        set_merge_error(base, None)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What a plain LoRA adapter adds to the weight, float32 `[N, K]`."""
        a, b = self.lora_A[adapter].weight.float(), self.lora_B[adapter].weight.float()
        delta: Tensor = (b @ a) * self.scaling[adapter]
        return delta

    def _base(self) -> Int8Linear:
        base: Int8Linear = self.get_base_layer()
        return base

    def _merged(self, weight: Tensor, adapters: list[str]) -> tuple[Tensor, Tensor | None]:
        """The exact weight `[N, K]`, float32, and what is added to the bias `[N]`, if anything is."""
        merged, bias = weight, torch.zeros_like(weight[:, 0])
        for name in adapters:
            delta = self.get_delta_weight(name).to(weight.device)
            merged = merged + delta
            if self.lora_bias[name]:
                bias = bias + self.lora_B[name].bias.float() * self.scaling[name]
            if name in self.lora_variant:
                # DoRA takes the norm of each row from the original weight, as its forward pass does.
                magnitude = self.lora_magnitude_vector[name].weight.float()
                factor = magnitude / torch.linalg.vector_norm(weight + delta, dim=1)
                merged, bias = merged * factor[:, None], bias * factor
        return merged, bias if any(self.lora_bias[name] for name in adapters) else None

    def _quantized(
        self, merged: Tensor, bias_change: Tensor | None, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        finite = bool(merged.isfinite().all()) and (bias_change is None or bool(bias_change.isfinite().all()))
        if not finite:
            raise QuantizationError(
                f"{self._name}: merging {', '.join(names)} gives values that are not finite: the adapter is "
                "broken; nothing of this layer was changed"
            )
        if bias_change is not None and self._base().bias is None:
            raise QuantizationError(
                f"{self._name}: the adapter has a bias (lora_bias=True), but the layer has none to merge it "
                "into; keep the adapter apart"
            )
        return reference.quantize_weight(merged, self._name)


def _row_major(config: LoraConfig) -> LoraConfig:
    """The configuration for a weight `[N, K]`: a `Conv1D` that became int8 is stored so too."""
    if not config.fan_in_fan_out:
        return config
    config = copy.copy(config)  # the caller's is saved with the adapter, for a float model to read
    config.fan_in_fan_out = False
    return config


def _data(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.data
