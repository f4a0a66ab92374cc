"""`experts_linear(x, expert, weight, absmax, bias, threshold) -> y`: each row through its expert's layer.

x: float `[R, K]`. expert: int64 `[R]`; from E on a number means none, and the row of y is zero.
weight: int8 `[E, N, K]`. absmax: float32 `[E, N]`. bias: float `[E, N]` or None. threshold: as `linear`.
y: `[R, N]` in the dtype of x; each row has the bits that `linear` gives it. The gradient is that of `linear`.

One operator with fixed shapes, whatever the router chose, so that a mixture compiles without a graph break.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmint8.errors import InputError
from llmint8.ops.input_gradient import input_gradient
from llmint8.ops.library import LIBRARY, define
from llmint8.ops.linear import linear


def _check(x: Tensor, expert: Tensor, weight: Tensor, absmax: Tensor) -> None:
    if weight.dim() != 3 or absmax.shape != weight.shape[:2]:
        raise InputError(
            f"weight must be int8 [E, N, K] and its scales [E, N], got {list(weight.shape)} and "
            f"{list(absmax.shape)}"
        )
    if x.dim() != 2 or expert.shape != x.shape[:1]:
        raise InputError(
            f"x must be [R, K] and expert [R], got {list(x.shape)} and {list(expert.shape)}; "
            "flatten them first"
        )


def _groups(expert: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """Each expert that has rows, and which they are."""
    for number in expert.unique().tolist():
        if number < count:
            yield number, torch.where(expert == number)[0]


def _experts_linear(
    x: Tensor, expert: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float
) -> Tensor:
    _check(x, expert, weight, absmax)
    y = x.new_zeros((x.shape[0], weight.shape[1]))
    for number, rows in _groups(expert, weight.shape[0]):
        own = None if bias is None else bias[number]
        y[rows] = linear(x[rows], weight[number], absmax[number], own, threshold)
    return y


def _fake(
    x: Tensor,
    expert: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,  # noqa: ARG001 - the schema's arguments
    threshold: float,  # noqa: ARG001
) -> Tensor:
    _check(x, expert, weight, absmax)
    return x.new_empty((x.shape[0], weight.shape[1]))


experts_linear = define(
    "experts_linear",
    "(Tensor x, Tensor expert, Tensor weight, Tensor absmax, Tensor? bias, float threshold) -> Tensor",
    _experts_linear,
    _fake,
)


def _input_gradient(grad: Tensor, expert: Tensor, weight: Tensor, absmax: Tensor) -> Tensor:
    grad_x = grad.new_zeros((grad.shape[0], weight.shape[2]))
    for number, rows in _groups(expert, weight.shape[0]):
        grad_x[rows] = input_gradient(grad[rows], weight[number], absmax[number])
    return grad_x


def _fake_input_gradient(grad: Tensor, expert: Tensor, weight: Tensor, absmax: Tensor) -> Tensor:  # noqa: ARG001
    return grad.new_empty((grad.shape[0], weight.shape[2]))


#: An operator too, so that a training step compiles: which rows an expert has is known when it runs.
_experts_input_gradient = define(
    "experts_input_gradient",
    "(Tensor grad, Tensor expert, Tensor weight, Tensor absmax) -> Tensor",
    _input_gradient,
    _fake_input_gradient,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, expert, weight, absmax, bias, _ = inputs
    ctx.save_for_backward(expert, weight, absmax)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    expert, weight, absmax = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _experts_input_gradient(grad.contiguous(), expert, weight, absmax)
    if ctx.needs_input_grad[4]:
        count = weight.shape[0]
        total = grad.new_zeros((count + 1, grad.shape[1]), dtype=torch.float32)  # the last: of no expert
        total = total.index_add(0, expert.clamp(max=count), grad.float())
        grad_bias = total[:count].to(ctx.bias_dtype)
    return grad_x, None, None, None, grad_bias, None


torch.library.register_autograd(
    "llmint8::experts_linear", _backward, setup_context=_setup_context, lib=LIBRARY
)
