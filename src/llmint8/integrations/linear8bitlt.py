"""`Linear8bitLt`: an `Int8Linear` under the name, the arguments and the attributes of bitsandbytes' layer.

For code that builds its layers itself. Models that transformers loads hold plain `Int8Linear` layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmint8 import ops, reference
from llmint8.config import Threshold
from llmint8.errors import ConfigError, QuantizationError
from llmint8.nn import Int8Linear
from llmint8.numerics import ROW_MAJOR


class Linear8bitLt(Int8Linear):
    """`y = x Wᵀ + bias` with an int8 weight; float weights are quantised when they are loaded or assigned.

    input_features, output_features: K and N. The weight of a fresh layer is drawn as `nn.Linear` draws it.
    has_fp16_weights: must be False; bitsandbytes' default True would keep float weights for training.
    threshold: 0 (none, the default as there), t > 0 or "auto", see `Int8Config`.
    index: kept as an attribute, without a meaning.

    State: as `Int8Linear`; `load_state_dict` takes int8 tensors (`weight`, `SCB`, `weight_format`) or
    those of an `nn.Linear`. `weight.CB`, `weight.SCB`, `state.CB`, `state.SCB` are the codes and the scales.
    Raises ConfigError for has_fp16_weights=True.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = True,
        threshold: Threshold = 0.0,
        index: Any = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        if has_fp16_weights:
            raise ConfigError(
                "has_fp16_weights=True keeps a float weight and quantises it in every call, which llmint8 "
                "does not do: pass has_fp16_weights=False, and train adapters (LoRA) on the int8 layer"
            )
        place = torch.device(device) if device is not None else None
        super().__init__(input_features, output_features, bias, place, threshold=threshold)
        self.index = index
        drawn = nn.Linear(input_features, output_features, bias, place)
        if not drawn.weight.is_meta:
            self.load_state_dict(drawn.state_dict())

    @property
    def state(self) -> Linear8bitLtState:
        """What bitsandbytes keeps in `layer.state`, read from this layer."""
        return Linear8bitLtState(self)

    def forward(self, input: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`; a row's result never depends on the other rows."""
        weight = cast(Tensor, self._parameters["weight"])  # past __getattr__, which attaches CB and SCB
        low_digit = self.outlier_cols, self.weight_low
        return ops.call_linear(input, weight, self.SCB, self.bias, self._threshold_code, *low_digit)

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        if name == "weight" and value is not None:
            # Attached anew each time: a move or a copy makes another tensor, and would leave them behind.
            value.CB, value.SCB = value.detach(), self._buffers["SCB"]
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and isinstance(value, Tensor) and value.is_floating_point():
            codes, absmax = reference.quantize_weight(value.detach())
            self.SCB, self.outlier_cols, self.weight_low = absmax, None, None
            value = nn.Parameter(codes, requires_grad=False)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear8bitLt:
        weight = self._parameters["weight"]
        if weight is not None and weight.is_floating_point():
            self.weight = weight  # put in through `weight.data`: the next move quantises it, as it does there
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        key = prefix + "weight"
        weight = state_dict.get(key)
        if weight is not None and weight.is_floating_point():
            try:
                codes, absmax = reference.quantize_weight(weight, key)
            except QuantizationError as error:
                args[-1].append(str(error))
                return
            scales = {prefix + "SCB": absmax, prefix + "weight_format": torch.tensor(ROW_MAJOR).byte()}
            state_dict = {**state_dict, key: codes, **scales}
        super()._load_from_state_dict(state_dict, prefix, *args)


class Linear8bitLtState:
    """The attributes of bitsandbytes' `MatmulLtState` that code reads, taken from the layer each time."""

    def __init__(self, layer: Linear8bitLt) -> None:
        self._layer = layer

    @property
    def CB(self) -> Tensor:  # noqa: N802 - the name is given
        """The codes, int8 `[N, K]`."""
        return self._layer._parameters["weight"].detach()  # type: ignore[union-attr]

    @property
    def SCB(self) -> Tensor:  # noqa: N802
        """The largest magnitude of each row, float32 `[N]`."""
        return self._layer.SCB

    @SCB.setter
    def SCB(self, value: None) -> None:  # noqa: N802
        # accelerate clears it when it offloads a layer of this name; here is no second copy to clear.
        if value is not None:
            raise AttributeError("state.SCB shows layer.SCB: load or assign the weight of the layer instead")

    @property
    def threshold(self) -> Threshold:
        """The layer's threshold; may be set."""
        return self._layer.threshold

    @threshold.setter
    def threshold(self, value: Threshold) -> None:
        self._layer.threshold = value

    @property
    def has_fp16_weights(self) -> bool:
        """False: the layer holds int8 alone."""
        return False

    @property
    def is_training(self) -> bool:
        """Whether the layer is in training mode."""
        return self._layer.training
