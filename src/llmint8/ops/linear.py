"""`linear(x, weight, absmax, bias, threshold) -> y`: the int8 linear layer, with its gradient.

x: float16, bfloat16 or float32 `[..., K]`. weight: int8 `[N, K]`. absmax: float32 `[N]`.
bias: float `[N]` or None.
threshold: 0 for no outliers, t > 0 for the paper's rule, negative for the automatic rule.
y: `[..., N]` in the dtype of x. The gradient: `dX = dY · W` with W de-quantised in blocks, `db = Σ dY`;
int8 weights get none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.errors import InputError
from llmint8.ops.library import LIBRARY, define
from llmint8.reference.rowwise import FLOATS

#: Rows of the weight that exist as floats at a time in the backward pass.
_BACKWARD_ROWS = 1024


def check_arguments(x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None) -> None:
    """Raise InputError, with the remedy, unless dtypes and shapes fit together."""
    if x.dtype not in FLOATS:
        raise InputError(
            f"the input of an int8 linear must be float32, float16 or bfloat16, got {x.dtype}; cast it first"
        )
    if weight.dtype != torch.int8 or weight.dim() != 2:
        raise InputError(f"weight must be int8 [N, K], got {weight.dtype} {list(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"the input {list(x.shape)} does not fit the weight {list(weight.shape)}: "
            f"its last dimension must be {weight.shape[1]}"
        )
    if absmax.dtype != torch.float32 or absmax.shape != weight.shape[:1]:
        raise InputError(f"SCB must be float32 [{weight.shape[0]}], got {absmax.dtype} {list(absmax.shape)}")
    if bias is not None and (bias.dtype not in FLOATS or bias.shape != weight.shape[:1]):
        raise InputError(f"bias must be a float [{weight.shape[0]}], got {bias.dtype} {list(bias.shape)}")


def reference_linear(
    x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float
) -> Tensor:
    """The default implementation, on any device: the reference, for any number of leading dimensions."""
    check_arguments(x, weight, absmax, bias)
    rows = x.reshape(math.prod(x.shape[:-1]), weight.shape[1])
    y = reference.linear(rows, weight, absmax, bias, threshold)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _fake(x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> Tensor:  # noqa: ARG001
    check_arguments(x, weight, absmax, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


linear = define(
    "linear",
    "(Tensor x, Tensor weight, Tensor absmax, Tensor? bias, float threshold) -> Tensor",
    reference_linear,
    _fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, weight, absmax, bias, _ = inputs
    ctx.save_for_backward(weight, absmax)
    ctx.bias_dtype = None if bias is None else bias.dtype


def input_gradient(grad: Tensor, weight: Tensor, absmax: Tensor) -> Tensor:
    """`dY · dequantise(W)`, `[..., N]` to `[..., K]`, in the dtype of dY; W becomes floats block by block."""
    total = grad.new_zeros((*grad.shape[:-1], weight.shape[1]), dtype=torch.float32)
    for start in range(0, weight.shape[0], _BACKWARD_ROWS):
        rows = slice(start, start + _BACKWARD_ROWS)
        total += grad[..., rows] @ reference.dequantize_weight(weight[rows], absmax[rows], grad.dtype)
    return total.to(grad.dtype)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None]:
    weight, absmax = ctx.saved_tensors
    grad_x = input_gradient(grad, weight, absmax) if ctx.needs_input_grad[0] else None
    grad_bias = None
    if ctx.needs_input_grad[3]:
        grad_bias = grad.sum(dim=tuple(range(grad.dim() - 1)), dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, None, None, grad_bias, None


torch.library.register_autograd("llmint8::linear", _backward, setup_context=_setup_context, lib=LIBRARY)
