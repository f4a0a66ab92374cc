"""Linear layers with 4-bit weights on a CPU: a few rows of the weight are floats at a time, in the cache."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from llmint8 import ops
from llmint8.backends.native import DTYPES, Native, engine
from llmint8.numerics import FOURBIT_BLOCK
from llmint8.ops.fourbit import (
    check_dtype,
    check_linear_4bit,
    check_weight_4bit,
    reference_dequantize_4bit,
    reference_linear_4bit,
)
from llmint8.ops.library import implement
from llmint8.reference.blockwise import dynamic_code_book
from llmint8.reference.fourbit import code_book


@functools.cache
def _book(quant_type: str) -> Tensor:
    return code_book(quant_type)


@functools.cache
def _nested_book() -> Tensor:
    return dynamic_code_book(True)


def _weight(
    packed: Tensor,
    absmax: Tensor,
    absmax_codes: Tensor | None,
    offset: Tensor | None,
    quant_type: str,
    block: int,
) -> tuple[list[Tensor], list[Any]]:
    """The tensors that must stay alive during a call, and its arguments."""
    kept = [packed.contiguous(), absmax.contiguous()]
    codes_address, mean = None, 0.0
    if absmax_codes is not None and offset is not None:
        kept.append(absmax_codes.contiguous())
        codes_address, mean = kept[-1].data_ptr(), float(offset)
    return kept, [
        kept[0].data_ptr(), _book(quant_type).data_ptr(), block, kept[1].data_ptr(),
        codes_address, _nested_book().data_ptr(), mean,
    ]  # fmt: skip


def dequantize(
    native: Native,
    packed: Tensor,
    absmax: Tensor,
    absmax_codes: Tensor | None,
    offset: Tensor | None,
    quant_type: str,
    shape: list[int],
    dtype: torch.dtype,
    block: int = FOURBIT_BLOCK,
) -> Tensor:
    """`llmint8_dequantize_4bit`."""
    check_weight_4bit(packed, absmax, absmax_codes, offset, math.prod(shape), block)
    check_dtype(dtype)
    _kept, weight = _weight(packed, absmax, absmax_codes, offset, quant_type, block)
    out = packed.new_empty(shape, dtype=dtype)
    native.call("llmint8_dequantize_4bit", DTYPES[dtype], out.numel(), *weight, out.data_ptr())
    return out


def linear(
    native: Native,
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
    """`llmint8_linear_4bit`."""
    check_linear_4bit(x, packed, absmax, absmax_codes, offset, bias, features, block)
    _kept, weight = _weight(packed, absmax, absmax_codes, offset, quant_type, block)
    x, leading, k = x.contiguous(), x.shape[:-1], x.shape[-1]
    y = x.new_empty((*leading, features))
    bias_dtype, bias_address = DTYPES[x.dtype], None
    if bias is not None:
        bias = bias.contiguous()
        bias_dtype, bias_address = DTYPES[bias.dtype], bias.data_ptr()
    native.call(
        "llmint8_linear_4bit", DTYPES[x.dtype], bias_dtype, math.prod(leading), k, features,
        x.data_ptr(), *weight, bias_address, y.data_ptr(),
    )  # fmt: skip
    return y


def _dequantize(*arguments: Any) -> Tensor:
    native = engine()
    return reference_dequantize_4bit(*arguments) if native is None else dequantize(native, *arguments)


def _linear(*arguments: Any) -> Tensor:
    native = engine()
    return reference_linear_4bit(*arguments) if native is None else linear(native, *arguments)


def register() -> None:
    """Make these the CPU implementations."""
    implement(ops.dequantize_4bit, _dequantize, "CPU")
    implement(ops.linear_4bit, _linear, "CPU")
