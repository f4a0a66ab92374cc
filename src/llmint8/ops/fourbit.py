"""`linear_4bit` and `dequantize_4bit`: linear layers with 4-bit weights, and their weights as floats.

packed: uint8, n / 2 bytes of any shape, two codes a byte. absmax: float32, one for each `block` elements; or,
where absmax_codes, uint8 `[blocks]`, are given, one for each 256 of those, and offset, float32 `[]`, is their
mean. linear_4bit: x float16, bfloat16 or float32 `[..., K]` to `[..., N]` of the same dtype, N being
`features`. The weight gets no gradient, `dX = dY · W` with W de-quantised in blocks, `db = Σ dY`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmint8.errors import InputError
from llmint8.numerics import FOURBIT_BLOCK, OPTIMIZER_BLOCK
from llmint8.ops.library import LIBRARY, define
from llmint8.reference import fourbit
from llmint8.reference.rowwise import FLOATS

#: Rows of the weight that exist as floats at a time while a gradient is computed.
_ROWS = 1024


def float_scales(absmax: Tensor, absmax_codes: Tensor | None, offset: Tensor | None) -> Tensor:
    """The scales as float32 `[blocks]`."""
    if absmax_codes is None or offset is None:
        return absmax
    return fourbit.dequantize_scales(fourbit.NestedScales(absmax_codes, absmax, offset))


def reference_dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    absmax_codes: Tensor | None,
    offset: Tensor | None,
    quant_type: str,
    shape: list[int],
    dtype: torch.dtype,
    block: int = FOURBIT_BLOCK,
) -> Tensor:
    """The default implementation, on any device."""
    check_weight_4bit(packed, absmax, absmax_codes, offset, math.prod(shape), block)
    check_dtype(dtype)
    scales = float_scales(absmax, absmax_codes, offset)
    return fourbit.dequantize_4bit(packed, scales, quant_type, tuple(shape), dtype, block)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise InputError for a dtype that a weight cannot be de-quantised to."""
    if dtype not in FLOATS:
        raise InputError(
            f"a 4-bit weight becomes float32, float16 or bfloat16, not {dtype}: cast it afterwards"
        )


def check_weight_4bit(
    packed: Tensor,
    absmax: Tensor,
    absmax_codes: Tensor | None,
    offset: Tensor | None,
    elements: int,
    block: int,
) -> None:
    """Raise InputError unless these are the tensors of so many elements; no element is read.

    Kernels take addresses: a tensor that is too short would be read past its end.
    """
    if block < 1:
        raise InputError(f"block must be at least 1, got {block}")
    if packed.dtype != torch.uint8 or packed.numel() != -(-elements // 2):
        raise InputError(
            f"{elements} weights of 4 bits are {-(-elements // 2)} uint8, two a byte, "
            f"got {packed.numel()} {packed.dtype}"
        )
    scales = fourbit.fourbit_blocks(elements, block)
    if (absmax_codes is None) != (offset is None):
        raise InputError("absmax_codes and offset belong together: give both or neither")
    if absmax_codes is not None:
        if absmax_codes.dtype != torch.uint8 or absmax_codes.numel() != scales:
            raise InputError(
                f"absmax_codes must be uint8 [{scales}], one for each {block} weights, "
                f"got {absmax_codes.dtype} {list(absmax_codes.shape)}"
            )
        scales = fourbit.fourbit_blocks(scales, OPTIMIZER_BLOCK)
    if absmax.dtype != torch.float32 or absmax.numel() != scales:
        raise InputError(f"absmax must be float32 [{scales}], got {absmax.dtype} {list(absmax.shape)}")


def check_linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    absmax_codes: Tensor | None,
    offset: Tensor | None,
    bias: Tensor | None,
    features: int,
    block: int,
) -> None:
    """Raise InputError, with the remedy, unless dtypes and shapes fit together; no element is read."""
    if x.dtype not in FLOATS:
        raise InputError(
            f"the input of a 4-bit linear must be float32, float16 or bfloat16, got {x.dtype}; cast it first"
        )
    if x.dim() == 0:
        raise InputError("the input of a 4-bit linear must have at least one dimension")
    if bias is not None and (bias.dtype not in FLOATS or bias.shape != (features,)):
        raise InputError(f"bias must be a float [{features}], got {bias.dtype} {list(bias.shape)}")
    try:
        check_weight_4bit(packed, absmax, absmax_codes, offset, features * x.shape[-1], block)
    except InputError as error:
        raise InputError(f"input {list(x.shape)} and {features} output features: {error}") from error


def reference_linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    absmax_codes: Tensor | None,
    offset: Tensor | None,
    quant_type: str,
    features: int,
    bias: Tensor | None,
    block: int = FOURBIT_BLOCK,
) -> Tensor:
    """The default implementation, on any device."""
    check_linear_4bit(x, packed, absmax, absmax_codes, offset, bias, features, block)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    scales = float_scales(absmax, absmax_codes, offset)
    y = fourbit.linear_4bit(rows, packed, scales, quant_type, bias, features, block)
    return y.reshape(*x.shape[:-1], features)


def _fake_dequantize(
    packed: Tensor,
    absmax: Tensor,  # noqa: ARG001 - the schema's arguments
    absmax_codes: Tensor | None,  # noqa: ARG001
    offset: Tensor | None,  # noqa: ARG001
    quant_type: str,  # noqa: ARG001
    shape: list[int],
    dtype: torch.dtype,
    block: int = FOURBIT_BLOCK,  # noqa: ARG001
) -> Tensor:
    return packed.new_empty(shape, dtype=dtype)


def _fake_linear(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    absmax_codes: Tensor | None,
    offset: Tensor | None,
    quant_type: str,  # noqa: ARG001 - the schema's arguments
    features: int,
    bias: Tensor | None,
    block: int = FOURBIT_BLOCK,
) -> Tensor:
    check_linear_4bit(x, packed, absmax, absmax_codes, offset, bias, features, block)
    return x.new_empty((*x.shape[:-1], features))


_WEIGHT = "Tensor packed, Tensor absmax, Tensor? absmax_codes, Tensor? offset, str quant_type"
dequantize_4bit = define(
    "dequantize_4bit",
    f"({_WEIGHT}, int[] shape, ScalarType dtype, int block={FOURBIT_BLOCK}) -> Tensor",
    reference_dequantize_4bit,
    _fake_dequantize,
)
linear_4bit = define(
    "linear_4bit",
    f"(Tensor x, {_WEIGHT}, int features, Tensor? bias, int block={FOURBIT_BLOCK}) -> Tensor",
    reference_linear_4bit,
    _fake_linear,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, packed, absmax, absmax_codes, offset, quant_type, features, bias, block = inputs
    ctx.save_for_backward(packed, absmax, absmax_codes, offset)
    ctx.quant_type, ctx.block, ctx.shape = quant_type, block, (features, x.shape[-1])
    ctx.bias_dtype = None if bias is None else bias.dtype


def _input_gradient(ctx: Any, grad: Tensor) -> Tensor:
    """`dY · W`, of which some rows at a time are floats: those of whole blocks and whole bytes."""
    packed, absmax, absmax_codes, offset = ctx.saved_tensors
    features, k = ctx.shape
    scales, codes = float_scales(absmax, absmax_codes, offset), packed.reshape(-1)
    step = math.lcm(ctx.block, k) // k
    step *= max(1, _ROWS // step)
    total = grad.new_zeros((*grad.shape[:-1], k), dtype=torch.float32)
    for start in range(0, features, step):
        rows = min(step, features - start)
        some = codes[start * k // 2 : -(-(start + rows) * k // 2)]
        some_scales = scales[start * k // ctx.block : -(-(start + rows) * k // ctx.block)]
        weight = dequantize_4bit(
            some, some_scales, None, None, ctx.quant_type, [rows, k], torch.float32, ctx.block
        )
        total += grad[..., start : start + rows].float() @ weight
    return total.to(grad.dtype)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = _input_gradient(ctx, grad) if ctx.needs_input_grad[0] else None
    grad_bias = None
    if ctx.needs_input_grad[7]:
        grad_bias = grad.sum(dim=tuple(range(grad.dim() - 1)), dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, *[None] * 6, grad_bias, None


torch.library.register_autograd("llmint8::linear_4bit", _backward, setup_context=_setup_context, lib=LIBRARY)
