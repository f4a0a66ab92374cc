"""`Int8Linear`: a linear layer whose weight is int8, a drop-in for `nn.Linear`.

The weight stays row-major, the one copy in memory, whatever the backend: kernels that want panels build
them per call in a cache-sized scratch. So nothing can go stale, and every move, copy or load is plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import ops, reference
from llmint8.config import Threshold, check_threshold
from llmint8.errors import QuantizationError
from llmint8.nn.casting import keeping
from llmint8.nn.threshold import HasThreshold
from llmint8.numerics import CODE_MAX, DEFAULT_THRESHOLD, ROW_MAJOR


class Int8Linear(HasThreshold, nn.Linear):
    """`y = x Wᵀ + bias` with `W ≈ weight · SCB / 127` (LLM.int8(), arXiv 2208.07339).

    State: `weight` int8 `[N, K]` (a Parameter without gradient), `SCB` float32 `[N]` (each row's largest
    magnitude), `weight_format` uint8 (0, row-major, as bitsandbytes writes it), `bias` float `[N]` or None.
    Input: float16, bfloat16 or float32 `[..., K]`; output: `[..., N]` in the dtype of the input.
    A fresh module holds a zero weight: fill it with `from_linear` or `load_state_dict`.

    threshold: 0, t > 0 or "auto", see `Int8Config`; may be set at any time.
    """

    SCB: Tensor
    weight_format: Tensor

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
        codes = torch.zeros((out_features, in_features), dtype=torch.int8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("SCB", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("weight_format", torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=device))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.threshold = threshold

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, threshold: Threshold = DEFAULT_THRESHOLD, name: str = "weight"
    ) -> Int8Linear:
        """Quantise an `nn.Linear`; it is not modified and shares only its bias.

        name: what an error calls the weight.
        Raises QuantizationError for a non-finite weight, or a module that is int8 already.
        """
        if isinstance(linear, Int8Linear):
            raise QuantizationError(f"{name}: the module is int8 already")
        return cls.from_weight(linear.weight, linear.bias, threshold, name).train(linear.training)

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        bias: nn.Parameter | None = None,
        threshold: Threshold = DEFAULT_THRESHOLD,
        name: str = "weight",
    ) -> Int8Linear:
        """Quantise a float weight `[N, K]` (any strides); `bias` is taken over as it is."""
        check_threshold(threshold)
        codes, absmax = reference.quantize_weight(weight.detach(), name)
        module = cls(codes.shape[1], codes.shape[0], bias=False, device="meta", threshold=threshold)
        module.weight = nn.Parameter(codes, requires_grad=False)
        module.SCB = absmax
        module.weight_format = torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=codes.device)
        module.register_parameter("bias", bias)
        return module

    def forward(self, input: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`; a row's result never depends on the other rows."""
        return ops.call_linear(input, self.weight, self.SCB, self.bias, self._threshold_code)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as floats, `[N, K]`."""
        return reference.dequantize_weight(self.weight, self.SCB, dtype)

    def to_float_layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """An `nn.Linear` with the de-quantised weight; it shares the bias."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.dequantize(dtype))
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def tensors(self) -> dict[str, Tensor]:
        """Codes, scales and bias by name."""
        named = {"weight": self.weight, "SCB": self.SCB, "bias": self.bias}
        return {key: tensor for key, tensor in named.items() if tensor is not None}

    def invalid_state(self) -> str | None:
        """Why the tensors of this module cannot be an int8 layer, or None."""
        if self.weight.shape != (self.out_features, self.in_features):
            return f"weight is {list(self.weight.shape)}, not {[self.out_features, self.in_features]}"
        return invalid_tensors(self.weight, self.SCB, self.weight_format)

    def extra_repr(self) -> str:
        """The arguments that matter, for `print(model)`."""
        return f"{super().extra_repr()}, threshold={self.threshold}"

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
        if error is not None:
            error_msgs.append(prefix + error)
            return  # nothing of a layer that cannot be right is taken over
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if weight is not None and prefix + "weight_format" in missing_keys:
            # Early bitsandbytes releases wrote none; row-major is meant.
            missing_keys.remove(prefix + "weight_format")


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
    if not weight.is_meta and weight.numel() and int(weight.min()) < -CODE_MAX:
        return f"weight holds the code {int(weight.min())}, which no absmax quantisation produces"
    return None
