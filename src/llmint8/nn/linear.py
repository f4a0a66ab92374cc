"""`Int8Linear`: a linear layer whose weight is int8, a drop-in for `nn.Linear`.

The weight stays row-major, the one copy in memory, whatever the backend: kernels that want panels build
them per call in a cache-sized scratch. So nothing can go stale, and every move, copy or load is plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import memory, ops, reference
from llmint8.config import Threshold, check_threshold
from llmint8.errors import QuantizationError
from llmint8.nn.casting import keeping
from llmint8.nn.threshold import HasThreshold
from llmint8.numerics import CODE_MAX, DEFAULT_THRESHOLD, ROW_MAJOR
from llmint8.ops.linear import invalid_low_digit


class Int8Linear(HasThreshold, nn.Linear):
    """`y = x Wᵀ + bias` with `W ≈ weight · SCB / 127` (LLM.int8(), arXiv 2208.07339).

    State: `weight` int8 `[N, K]` (a Parameter without gradient), `SCB` float32 `[N]` (each row's largest
    magnitude), `weight_format` uint8 (0, row-major, as bitsandbytes writes it), `bias` float `[N]` or None.
    `outlier_cols` int32 `[P]`, ascending, and `weight_low` int8 `[N, P]`: on these columns
    `W ≈ (weight + weight_low / 256) · SCB / 127`; both are None, and no part of the state, where P = 0.
    A state dict says all of a layer: one with the two tensors brings them, one without removes them.
    Input: float16, bfloat16 or float32 `[..., K]`; output: `[..., N]` in the dtype of the input.
    A fresh module holds a zero weight: fill it with `from_linear` or `load_state_dict`.

    threshold: 0, t > 0 or "auto", see `Int8Config`; may be set at any time.
    """

    SCB: Tensor
    weight_format: Tensor
    outlier_cols: Tensor | None
    weight_low: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        threshold: Threshold = DEFAULT_THRESHOLD,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would allocate and initialise a float weight
        self.in_features = in_features
        self.out_features = out_features
        codes = memory.zeros((out_features, in_features), device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("SCB", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("weight_format", torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=device))
        self.register_buffer("outlier_cols", None)
        self.register_buffer("weight_low", None)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.threshold = threshold

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        threshold: Threshold = DEFAULT_THRESHOLD,
        name: str = "weight",
        outlier_cols: Tensor | None = None,
    ) -> Int8Linear:
        """Quantise an `nn.Linear`; it is not modified and shares only its bias.

        name, outlier_cols: see `from_weight`.
        Raises QuantizationError for a non-finite weight, or a module that is int8 already.
        """
        if isinstance(linear, Int8Linear):
            raise QuantizationError(f"{name}: the module is int8 already")
        module = cls.from_weight(linear.weight, linear.bias, threshold, name, outlier_cols)
        return module.train(linear.training)

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        bias: nn.Parameter | None = None,
        threshold: Threshold = DEFAULT_THRESHOLD,
        name: str = "weight",
        outlier_cols: Tensor | None = None,
    ) -> Int8Linear:
        """Quantise a float weight `[N, K]` (any strides); `bias` is taken over as it is.

        name: what an error calls the weight.
        outlier_cols: int32 `[P]`, ascending: the columns of the weight that get a second digit; P may be 0.
        Raises QuantizationError for a weight that has no codes, or columns that it does not have.
        """
        check_threshold(threshold)
        weight = weight.detach()
        codes, absmax = reference.quantize_weight(weight, name)
        low = None
        if outlier_cols is not None:
            reason = invalid_columns(outlier_cols, codes.shape[1])
            if reason is not None:
                raise QuantizationError(f"{name}: {reason}")
            outlier_cols = outlier_cols.to(codes.device) if len(outlier_cols) else None
        if outlier_cols is not None:
            low = reference.quantize_low_digit(weight, codes, absmax, outlier_cols)
        module = cls(codes.shape[1], codes.shape[0], bias=False, device="meta", threshold=threshold)
        module.weight = nn.Parameter(codes, requires_grad=False)
        module.SCB = absmax
        module.outlier_cols, module.weight_low = outlier_cols, low
        module.weight_format = torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=codes.device)
        module.register_parameter("bias", bias)
        return module

    def forward(self, input: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`; a row's result never depends on the other rows."""
        # An attribute that a module has to search for costs a tenth of a small layer.
        own: dict[str, Any] = self._parameters
        kept: dict[str, Any] = self._buffers
        try:
            weight, absmax, bias = own["weight"], kept["SCB"], own["bias"]
            low_digit = kept["outlier_cols"], kept["weight_low"]
        except KeyError:  # something keeps them elsewhere
            weight, absmax, bias = self.weight, self.SCB, self.bias
            low_digit = self.outlier_cols, self.weight_low
        return ops.call_linear(input, weight, absmax, bias, self._threshold_code, *low_digit)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as floats, `[N, K]`."""
        low_digit = self.outlier_cols, self.weight_low
        return reference.dequantize_weight(self.weight, self.SCB, dtype, *low_digit)

    def to_float_layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """An `nn.Linear` with the de-quantised weight; it shares the bias."""
        return as_float_linear(self, self.dequantize(dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Codes, scales, bias, and the second digit with its columns, by name; what is None is left out."""
        named = {
            "weight": self.weight,
            "SCB": self.SCB,
            "bias": self.bias,
            "outlier_cols": self.outlier_cols,
            "weight_low": self.weight_low,
        }
        return {key: tensor for key, tensor in named.items() if tensor is not None}

    def invalid_state(self) -> str | None:
        """Why the tensors of this module cannot be an int8 layer, or None."""
        if self.weight.shape != (self.out_features, self.in_features):
            return f"weight is {list(self.weight.shape)}, not {[self.out_features, self.in_features]}"
        return invalid_tensors(self.weight, self.SCB, self.weight_format) or invalid_outliers(
            self.weight.shape, self.outlier_cols, self.weight_low
        )

    def extra_repr(self) -> str:
        """The arguments that matter, for `print(model)`."""
        columns = "" if self.outlier_cols is None else f", outlier_cols={len(self.outlier_cols)}"
        return f"{super().extra_repr()}, threshold={self.threshold}{columns}"

    def reset_parameters(self) -> None:
        """Nothing to draw: an int8 weight is converted or loaded, never initialised at random."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Move all, cast the bias alone."""
        super()._apply(keeping(fn, self.SCB), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight, scb = state_dict.get(prefix + "weight"), state_dict.get(prefix + "SCB")
        columns, low = state_dict.get(prefix + "outlier_cols"), state_dict.get(prefix + "weight_low")
        error = None
        if weight is not None and weight.is_floating_point():
            error = (
                f"weight is {weight.dtype}, but the module is int8: "
                "load the float checkpoint first, then quantise the model"
            )
        elif (weight is None) != (scb is None) and "SCB" not in self._non_persistent_buffers_set:
            missing, present = ("weight", "SCB") if weight is None else ("SCB", "weight")
            error = f"{missing} is missing, without which {present} means nothing"
        elif weight is not None and scb is not None:
            error = invalid_tensors(weight, scb, state_dict.get(prefix + "weight_format"))
        if error is None and (columns is not None or low is not None):
            if weight is None:
                error = "weight is missing, without which outlier_cols and weight_low mean nothing"
            else:
                error = invalid_outliers(weight.shape, columns, low)
        if error is not None:
            error_msgs.append(prefix + error)
            return  # nothing of a layer that cannot be right is taken over
        if weight is not None and weight.shape == self.weight.shape:
            self._make_room(outlier_cols=columns, weight_low=low)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if weight is not None and prefix + "weight_format" in missing_keys:
            # Early bitsandbytes releases wrote none; row-major is meant.
            missing_keys.remove(prefix + "weight_format")

    def _make_room(self, **stored: Tensor | None) -> None:
        """Give the optional buffers the shapes that are about to be loaded."""
        for name, tensor in stored.items():
            held = self._buffers[name]
            if tensor is None:
                setattr(self, name, None)
            elif held is None or held.shape != tensor.shape:
                setattr(self, name, torch.empty_like(tensor, device=self.weight.device))


def as_float_linear(module: nn.Linear, weight: Tensor) -> nn.Linear:
    """An `nn.Linear` in the place of a quantised one, with that weight `[N, K]`; it shares the bias."""
    linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    linear.register_parameter("bias", module.bias)
    return linear.train(module.training)


def invalid_tensors(
    weight: Tensor, scb: Tensor, weight_format: Tensor | None, dimensions: int = 2
) -> str | None:
    """Why three tensors cannot be the state of an int8 layer, or None; tensors without data pass.

    dimensions: 2 for a layer `[N, K]`, 3 for experts `[E, N, K]`.
    """
    if weight.dtype != torch.int8 or weight.dim() != dimensions:
        shape = "[N, K]" if dimensions == 2 else "[E, N, K]"
        return f"weight is {weight.dtype} {list(weight.shape)}, not int8 {shape}"
    if scb.dtype != torch.float32 or scb.shape != weight.shape[:-1]:
        return f"SCB is {scb.dtype} {list(scb.shape)}, not float32 {list(weight.shape[:-1])}"
    if weight_format is not None and not weight_format.is_meta and int(weight_format) != ROW_MAJOR:
        return f"weight_format is {int(weight_format)}, a tiled layout of bitsandbytes before 0.45"
    if not scb.is_meta and not bool(((scb >= 0) & scb.isfinite()).all()):
        return "SCB holds a negative or non-finite value"
    if not weight.is_meta and weight.numel() and (smallest := _smallest(weight)) < -CODE_MAX:
        return f"weight holds the code {smallest}, which no absmax quantisation produces"
    return None


def _smallest(codes: Tensor) -> int:
    # torch's threads meet once for each tensor: on a busy machine that takes longer than to read a model.
    plain = codes.device.type == "cpu" and type(codes) in (Tensor, nn.Parameter)
    return int(codes.detach().numpy().min() if plain else codes.min())


def invalid_outliers(
    shape: Sequence[int], outlier_cols: Tensor | None, weight_low: Tensor | None
) -> str | None:
    """Why two tensors cannot be the second digit of a weight `[N, K]`, or None; both may be None."""
    if outlier_cols is None and weight_low is None:
        return None
    reason = invalid_low_digit(shape, outlier_cols, weight_low)
    return reason or (None if outlier_cols is None else invalid_columns(outlier_cols, shape[1]))


def invalid_columns(outlier_cols: Tensor, features: int) -> str | None:
    """Why a tensor cannot name columns of a weight with K `features`, or None; tensors without data pass."""
    if outlier_cols.dtype != torch.int32 or outlier_cols.dim() != 1:
        return f"outlier_cols must be int32 [P], got {outlier_cols.dtype} {list(outlier_cols.shape)}"
    if outlier_cols.is_meta or not len(outlier_cols):
        return None
    if not bool((outlier_cols[1:] > outlier_cols[:-1]).all()):
        return "outlier_cols must ascend: each column once, the smallest first"
    if int(outlier_cols[0]) < 0 or int(outlier_cols[-1]) >= features:
        return (
            f"outlier_cols must lie in [0, {features}), got {int(outlier_cols[0])} to {int(outlier_cols[-1])}"
        )
    return None
