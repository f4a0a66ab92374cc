"""One step of each optimizer, in plain torch: the meaning of `llmint8.optim`.

Every rule turns a gradient and a state into a new state and an update; everything else is common to all:
weight decay, the step along the update, and how the state is stored. All arithmetic is float32 in the order
written here, without fused multiply-add, so that kernels return the same bits. Constants are computed by the
caller in double precision and rounded to float32 once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmint8.numerics import OPTIMIZER_BLOCK
from llmint8.reference.blockwise import as_blocks, dequantize_blockwise, quantize_blockwise

Update = Callable[..., tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Rule:
    """How an optimizer moves.

    name: for people. code: LLMINT8_RULE_* of the C header. signed: which states hold negative numbers.
    update: `update(g, states, *constants) -> (u, new states)`, all float32 of one shape.
    """

    name: str
    code: int
    signed: tuple[bool, ...]
    update: Update


@dataclass(frozen=True)
class Common:
    """The constants that all rules share: `g + p·coupled_decay`, `u + p·update_decay`, `p·decay - u·step`."""

    step: float
    decay: float = 1.0
    coupled_decay: float = 0.0
    update_decay: float = 0.0


def _sqrt(x: Tensor) -> Tensor:
    """The correctly rounded root. torch's own in float32 may come from MKL, one unit in the last place off;
    in float64 it errs too little to cross a tie between two float32 numbers."""
    return x.double().sqrt().float()


def _second_moment(v: Tensor, g: Tensor, beta2: float, rest2: float) -> Tensor:
    return v * beta2 + (g * rest2) * g


def _adam(
    g: Tensor, states: list[Tensor],
    beta1: float, rest1: float, beta2: float, rest2: float, root: float, eps: float, mean: float,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Kingma and Ba, arXiv 1412.6980. root = 1/sqrt(1 - beta2^t), mean = 1/(1 - beta1^t)."""
    m = states[0] * beta1 + g * rest1
    v = _second_moment(states[1], g, beta2, rest2)
    return (m * mean) / (_sqrt(v) * root + eps), [m, v]


def _ademamix(
    g: Tensor, states: list[Tensor],
    beta1: float, rest1: float, beta2: float, rest2: float, root: float, eps: float, mean: float,
    beta3: float, rest3: float, alpha: float,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Pagliardini, Ablin and Grangier, arXiv 2409.03137: Adam with a second, slow mean of the gradients."""
    fast = states[0] * beta1 + g * rest1
    slow = states[1] * beta3 + g * rest3
    v = _second_moment(states[2], g, beta2, rest2)
    return (fast * mean + slow * alpha) / (_sqrt(v) * root + eps), [fast, slow, v]


def _lion(
    g: Tensor, states: list[Tensor], beta1: float, rest1: float, beta2: float, rest2: float
) -> tuple[Tensor, list[Tensor]]:
    """Chen et al., arXiv 2302.06675: the sign of an interpolated momentum."""
    mixed = states[0] * beta1 + g * rest1
    return torch.where(mixed.isnan(), mixed, mixed.sign()), [states[0] * beta2 + g * rest2]


def _momentum(
    g: Tensor, states: list[Tensor], momentum: float, weight: float, of_gradient: float, of_buffer: float
) -> tuple[Tensor, list[Tensor]]:
    """SGD with momentum as `torch.optim.SGD` defines it; the update mixes gradient and buffer (Nesterov)."""
    buffer = states[0] * momentum + g * weight
    return g * of_gradient + buffer * of_buffer, [buffer]


def _rmsprop(
    g: Tensor, states: list[Tensor], alpha: float, rest: float, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """Tieleman and Hinton's RMSprop, as `torch.optim.RMSprop` defines it."""
    v = _second_moment(states[0], g, alpha, rest)
    return g / (_sqrt(v) + eps), [v]


def _rmsprop_momentum(
    g: Tensor, states: list[Tensor], alpha: float, rest: float, eps: float, momentum: float
) -> tuple[Tensor, list[Tensor]]:
    u, (v,) = _rmsprop(g, states[:1], alpha, rest, eps)
    buffer = states[1] * momentum + u
    return buffer, [v, buffer]


def _adagrad(g: Tensor, states: list[Tensor], eps: float) -> tuple[Tensor, list[Tensor]]:
    """Duchi, Hazan and Singer, JMLR 2011."""
    total = states[0] + g * g
    return g / (_sqrt(total) + eps), [total]


ADAM = Rule("Adam", 0, (True, False), _adam)
ADEMAMIX = Rule("AdEMAMix", 1, (True, True, False), _ademamix)
LION = Rule("Lion", 2, (True,), _lion)
MOMENTUM = Rule("SGD with momentum", 3, (True,), _momentum)
RMSPROP = Rule("RMSprop", 4, (False,), _rmsprop)
RMSPROP_MOMENTUM = Rule("RMSprop with momentum", 5, (False, True), _rmsprop_momentum)
ADAGRAD = Rule("Adagrad", 6, (False,), _adagrad)
RULES = (ADAM, ADEMAMIX, LION, MOMENTUM, RMSPROP, RMSPROP_MOMENTUM, ADAGRAD)


def _update(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    weights, gradient = p.float(), g.float()
    if common.coupled_decay:
        gradient = gradient + weights * common.coupled_decay
    values = [
        state if scale is None else dequantize_blockwise(state, scale, signed)
        for state, scale, signed in zip(states, absmax, rule.signed, strict=True)
    ]
    u, new = rule.update(gradient, values, *constants)
    if common.update_decay:
        u = u + weights * common.update_decay
    return weights, u, new


def optimizer_step(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> None:  # fmt: skip
    """Update p, and the states with their absmax, in place.

    p: float16, bfloat16 or float32, contiguous, of any shape. g: the same shape, of any of these dtypes.
    states: one per entry of `rule.signed`, of p's shape: uint8 codes with absmax float32 `[blocks]`, or
    float32 values where absmax is None. constants: of the rule, float32 values.
    """
    weights, u, new = _update(rule, p, g, states, absmax, common, constants)
    moved = weights * common.decay - u * common.step
    p.copy_(torch.where(moved.isnan(), torch.full_like(moved, math.nan), moved))
    for state, scale, signed, values in zip(states, absmax, rule.signed, new, strict=True):
        if scale is None:
            state.copy_(values)
        else:
            codes, largest = quantize_blockwise(values, signed)
            state.copy_(codes)
            scale.copy_(largest)


def optimizer_norms(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> Tensor:  # fmt: skip
    """What `optimizer_step` would do, measured: nothing is changed.

    Returns float64 `[blocks, 2]`: each block's sums of squares of the weights and of the update.
    """
    weights, u, _ = _update(rule, p, g, states, absmax, common, constants)
    return torch.stack([_sum_of_squares(weights), _sum_of_squares(u)], dim=1)


def _sum_of_squares(x: Tensor) -> Tensor:
    """Per block, in float64, halving the block again and again: one order on every backend."""
    sums = as_blocks(x).double() ** 2
    half = OPTIMIZER_BLOCK // 2
    while half:
        sums = sums[:, :half] + sums[:, half:]
        half //= 2
    return sums[:, 0]
