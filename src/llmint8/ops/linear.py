"""`linear(x, weight, absmax, bias, threshold, outlier_cols, weight_low) -> y`: the int8 linear layer.

x: float16, bfloat16 or float32 `[..., K]`. weight: int8 `[N, K]`. absmax: float32 `[N]`.
bias: float `[N]` or None.
threshold: 0 for no outliers, t > 0 for the paper's rule, negative for the automatic rule.
outlier_cols, weight_low: int32 `[P]`, ascending, within [0, K), and int8 `[N, P]`: the second weight digit of
a few columns. Both or, which is the default, neither.
y: `[..., N]` in the dtype of x. The gradient: `dX = dY · W` with W de-quantised in blocks, both digits of it,
`db = Σ dY`; int8 weights get none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.errors import InputError
from llmint8.ops.input_gradient import input_gradient
from llmint8.ops.library import LIBRARY, define
from llmint8.reference.rowwise import FLOATS


def check_arguments(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> None:
    """Raise InputError, with the remedy, unless dtypes and shapes fit together; no element is read."""
    if x.dtype not in FLOATS:
        raise InputError(
            f"the input of an int8 linear must be float32, float16 or bfloat16, got {x.dtype}; cast it first"
        )
    # Shapes are read once each: a call into torch costs a hundredth of a small layer.
    shape, matrix, scales = x.shape, weight.shape, absmax.shape
    if weight.dtype != torch.int8 or len(matrix) != 2:
        raise InputError(f"weight must be int8 [N, K], got {weight.dtype} {list(matrix)}")
    n, k = matrix
    if not shape or shape[-1] != k:
        raise InputError(
            f"the input {list(shape)} does not fit the weight {list(matrix)}: its last dimension must be {k}"
        )
    if absmax.dtype != torch.float32 or len(scales) != 1 or scales[0] != n:
        raise InputError(f"SCB must be float32 [{n}], got {absmax.dtype} {list(scales)}")
    if bias is not None and (bias.dtype not in FLOATS or bias.dim() != 1 or bias.size(0) != n):
        raise InputError(f"bias must be a float [{n}], got {bias.dtype} {list(bias.shape)}")
    if outlier_cols is not None or weight_low is not None:
        reason = invalid_low_digit(weight.shape, outlier_cols, weight_low)
        if reason is not None:
            raise InputError(reason)


def invalid_low_digit(
    shape: Sequence[int], outlier_cols: Tensor | None, weight_low: Tensor | None
) -> str | None:
    """Why two tensors cannot be the second digit of a weight `[N, K]` by dtype and shape, or None."""
    if outlier_cols is None or weight_low is None:
        given, missing = (
            ("weight_low", "outlier_cols") if outlier_cols is None else ("outlier_cols", "weight_low")
        )
        return f"{given} means nothing without {missing}: give both or neither"
    columns = outlier_cols.shape
    if outlier_cols.dtype != torch.int32 or len(columns) != 1 or columns[0] > shape[1]:
        return (
            f"outlier_cols must be int32 [P] with P at most {shape[1]}, "
            f"got {outlier_cols.dtype} {list(columns)}"
        )
    want = (shape[0], columns[0])
    if weight_low.dtype != torch.int8 or weight_low.shape != want:
        return f"weight_low must be int8 {list(want)}, got {weight_low.dtype} {list(weight_low.shape)}"
    return None


def reference_linear(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    threshold: float,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """The default implementation, on any device: the reference, for any number of leading dimensions."""
    check_arguments(x, weight, absmax, bias, outlier_cols, weight_low)
    rows = x.reshape(math.prod(x.shape[:-1]), weight.shape[1])
    y = reference.linear(rows, weight, absmax, bias, threshold, outlier_cols, weight_low)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _fake(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    threshold: float,  # noqa: ARG001 - the schema's arguments
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    check_arguments(x, weight, absmax, bias, outlier_cols, weight_low)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


linear = define(
    "linear",
    "(Tensor x, Tensor weight, Tensor absmax, Tensor? bias, float threshold, "
    "Tensor? outlier_cols=None, Tensor? weight_low=None) -> Tensor",
    reference_linear,
    _fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, weight, absmax, bias, _, *low_digit = inputs
    ctx.save_for_backward(weight, absmax, *low_digit)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = input_gradient(grad, *ctx.saved_tensors) if ctx.needs_input_grad[0] else None
    grad_bias = None
    if ctx.needs_input_grad[3]:
        grad_bias = grad.sum(dim=tuple(range(grad.dim() - 1)), dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, None, None, grad_bias, None, None, None


torch.library.register_autograd("llmint8::linear", _backward, setup_context=_setup_context, lib=LIBRARY)
