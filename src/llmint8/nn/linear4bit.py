"""`Linear4bit`: a linear layer whose weight has 4 bits, for adapters on a small base (QLoRA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import ops, reference
from llmint8.errors import QuantizationError
from llmint8.nn.casting import keeping
from llmint8.nn.fourbit_state import FourbitState, read_state, state_keys, write_state
from llmint8.nn.linear import Int8Linear, as_float_linear
from llmint8.numerics import FOURBIT_BLOCK
from llmint8.reference.fourbit import fourbit_blocks, zero_bytes


class Linear4bit(nn.Linear):
    """`y = x Wᵀ + bias` with `W ≈ code_book[code] · absmax of its block` (QLoRA, arXiv 2305.14314).

    State: `weight` uint8 `[ceil(N·K / 2), 1]`, two codes a byte (a Parameter without gradient); `absmax`,
    float32 `[blocks]`, or with double quantisation uint8 `[blocks]`, `nested_absmax` float32 `[blocks / 256]`
    and `offset` float32 `[]`; `bias` float `[N]` or None. A state dict has the keys and layout of
    bitsandbytes' `Params4bit`.
    Input: float16, bfloat16 or float32 `[..., K]`; output: `[..., N]` in the dtype of the input. The weight
    is never a float matrix: a few rows at a time are. Products and sums are float32.
    A fresh module holds a zero weight: fill it with `from_linear` or `load_state_dict`.

    quant_type: "nf4" or "fp4". weight_dtype: of the float weight, as other readers get to know it.
    """

    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        quant_type: str = "nf4",
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would allocate and initialise a float weight
        self.in_features = in_features
        self.out_features = out_features
        self.quant_type = quant_type
        self.block = FOURBIT_BLOCK
        self.weight_dtype = dtype or torch.get_default_dtype()
        reference.code_book(quant_type)  # refuses an unknown one
        count = in_features * out_features
        packed = torch.full((-(-count // 2), 1), zero_bytes(quant_type), dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        scales = torch.zeros(fourbit_blocks(count), device=device)
        self.register_buffer("absmax", scales, persistent=False)
        self.register_buffer("nested_absmax", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, quant_type: str = "nf4", double_quant: bool = False
    ) -> Linear4bit:
        """Quantise an `nn.Linear`; it is not modified and shares only its bias.

        quant_type: "nf4" or "fp4". double_quant: whether the scales get 8 bits too, which saves 0.37 bits a
        weight.
        Raises QuantizationError for another quant_type, a weight that has no codes (not finite, without
        data), or a module that is quantised already.
        """
        if isinstance(linear, (Int8Linear, Linear4bit)):
            raise QuantizationError("the module is quantised already: start from the float layer")
        packed, absmax = reference.quantize_4bit(linear.weight, quant_type)
        module = cls(linear.in_features, linear.out_features, False, "meta", linear.weight.dtype, quant_type)
        module.weight = nn.Parameter(packed, requires_grad=False)
        module.absmax = absmax
        if double_quant:
            module.absmax, module.nested_absmax, module.offset = _nested(absmax)
        module.register_parameter("bias", linear.bias)
        return module.train(linear.training)

    @property
    def double_quant(self) -> bool:
        """Whether the scales have 8 bits."""
        return self.nested_absmax is not None

    def _scales(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """absmax, absmax_codes and offset, as the operators take them."""
        if self.nested_absmax is None:
            return self.absmax, None, None
        return self.nested_absmax, self.absmax, self.offset

    def forward(self, input: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`; a row's result never depends on the other rows."""
        output: Tensor = ops.linear_4bit(
            input, self.weight, *self._scales(), self.quant_type, self.out_features, self.bias, self.block
        )
        return output

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as floats, `[N, K]`."""
        shape = [self.out_features, self.in_features]
        weight: Tensor = ops.dequantize_4bit(
            self.weight, *self._scales(), self.quant_type, shape, dtype, self.block
        )
        return weight

    def to_float_layer(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """An `nn.Linear` with the de-quantised weight; it shares the bias."""
        return as_float_linear(self, self.dequantize(dtype))

    def extra_repr(self) -> str:
        """The arguments that matter, for `print(model)`."""
        return f"{super().extra_repr()}, quant_type={self.quant_type!r}, double_quant={self.double_quant}"

    def reset_parameters(self) -> None:
        """Nothing to draw: a 4-bit weight is converted or loaded, never initialised at random."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear4bit:
        """Move all, cast the bias alone."""
        scales = [t for t in (self.absmax, self.nested_absmax, self.offset) if t is not None]
        super()._apply(keeping(fn, *scales), recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.absmax.is_meta:  # without data there is nothing to say, and a loader would wait for it
            return
        state = FourbitState(
            self.quant_type,
            self.block,
            self.weight_dtype,
            (self.out_features, self.in_features),
            self.absmax,
            self.nested_absmax,
            self.offset,
        )
        for key, tensor in write_state(state).items():
            destination[f"{prefix}weight.{key}"] = tensor

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
        start = f"{prefix}weight."
        given = {k.removeprefix(start): t for k, t in state_dict.items() if k.startswith(start)}
        weight = state_dict.get(prefix + "weight")
        if weight is not None:
            try:
                state = read_state(given, weight, (self.out_features, self.in_features))
            except QuantizationError as error:
                error_msgs.append(f"{prefix}weight: {error}")
                return  # nothing of a layer that cannot be right is taken over
            self.set_state(state)
        plain = {k: t for k, t in state_dict.items() if not k.startswith(start)}
        super()._load_from_state_dict(
            plain, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for key in state_keys(given):
            if start + key in unexpected_keys:
                unexpected_keys.remove(start + key)

    def set_state(self, state: FourbitState) -> None:
        """Take over what belongs to the codes; they are not checked against each other here."""
        self.quant_type, self.block, self.weight_dtype = state.quant_type, state.block, state.dtype
        device = self.weight.device
        self.absmax = state.absmax.to(device, copy=True)
        self.nested_absmax = (
            None if state.nested_absmax is None else state.nested_absmax.to(device, copy=True)
        )
        self.offset = None if state.offset is None else state.offset.to(device, copy=True)


def _nested(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scales = reference.quantize_scales(absmax)
    return scales.codes, scales.absmax, scales.offset
