"""Float arithmetic that returns the same bits everywhere (docs/numerics.md, "Decoder").

Float sums depend on their order, so the order is part of the meaning: lanes, then a tree. What the C library
of a machine would compute in its own way, such as the exponential, is spelt out in sums and products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8.numerics import (
    ERFC_POLYNOMIAL,
    EXP_POLYNOMIAL,
    EXP_RANGE,
    EXPONENT_BIAS,
    GELU_TANH_CUBIC,
    GELU_TANH_SCALE,
    LANES,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    PAIR_BLOCK,
    SPECK,
    SQRT_HALF,
)


def canonical(x: Tensor) -> Tensor:
    """The same values with every NaN the canonical quiet one."""
    return x.masked_fill(x.isnan(), float("nan"))


def lane_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension in the fixed order.

    x: float32 `[..., n]`. Lane j adds x[j], x[j + 16], ... one after the other, starting from 0; the sixteen
    lanes are halved into eight, and neighbours are added three times.

    Returns float32 `[...]`.
    """
    rows = -(-x.shape[-1] // LANES)
    padded = torch.nn.functional.pad(x, (0, rows * LANES - x.shape[-1])).unflatten(-1, (rows, LANES))
    lanes = x.new_zeros(*x.shape[:-1], LANES)
    for row in padded.unbind(-2):
        lanes = lanes + row
    total = lanes[..., : LANES // 2] + lanes[..., LANES // 2 :]
    while total.shape[-1] > 1:
        total = total[..., 0::2] + total[..., 1::2]
    return total[..., 0]


def pair_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension in the order of AMX's bfloat16 products (Intel's SDM, TDPBF16PS).

    x: float32 `[..., n]`. In blocks of 32, the sixteen even elements are added one after the other, starting
    from 0, and the sixteen odd ones; their sum is the block's, and blocks are added likewise.

    Returns float32 `[...]`.
    """
    padding = -x.shape[-1] % PAIR_BLOCK
    pairs = torch.nn.functional.pad(x, (0, padding)).unflatten(-1, (-1, PAIR_BLOCK // 2, 2))
    chains = torch.zeros_like(pairs[..., 0, :])
    for pair in pairs.unbind(-2):
        chains = chains + pair
    total = x.new_zeros(x.shape[:-1])
    for block in (chains[..., 0] + chains[..., 1]).unbind(-1):
        total = total + block
    return total


def without_specks(x: Tensor) -> Tensor:
    """x in float32; in bfloat16, whose products are summed without subnormal numbers, what is tiny is 0.

    No sum of products of what is left can be subnormal, so that none depends on how a CPU treats those.
    """
    wide = x.float()
    return wide if x.dtype != torch.bfloat16 else wide.masked_fill(wide.abs() < SPECK, 0.0)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule, every product and sum rounded. coefficients: from the constant on."""
    result = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


def exp(x: Tensor) -> Tensor:
    """e^x in float32, within 2 ulp for -87 <= x <= 88; 0 below, e^88 above.

    Method: x = n ln 2 + r as in Cody and Waite, 1980; a polynomial in r; 2^n by the exponent's bits.
    """
    lowest, highest = (torch.full_like(x, bound) for bound in EXP_RANGE)
    clamped = torch.where(x > highest, highest, torch.where(x < lowest, lowest, x))
    n = (clamped * LOG2_E).round()
    r = (clamped - n * LN2_HIGH) - n * LN2_LOW
    value = (_polynomial(EXP_POLYNOMIAL, r) * (r * r) + r) + 1.0
    power = ((n.nan_to_num(0).to(torch.int32) + EXPONENT_BIAS) << 23).view(torch.float32)
    return torch.where(x < lowest, torch.zeros_like(x), value * power)


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x) in float32."""
    return x / (exp(-x) + 1.0)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU in float32; (1 + tanh u) / 2 is written as 1 / (1 + e^-2u)."""
    u = ((x * x) * x * GELU_TANH_CUBIC + x) * GELU_TANH_SCALE
    return x / (exp(-u) + 1.0)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) in float32, Φ being the normal distribution function, within 4e-7 of its value.

    The upper tail is t e^(P(t) - z²) / 2 with z = |x| / √2 and t = 1 / (1 + z / 2).
    """
    z = x.abs() * SQRT_HALF
    t = torch.ones_like(z) / (z * 0.5 + 1.0)
    tail = exp(_polynomial(ERFC_POLYNOMIAL, t) - z * z) * t * 0.5
    return x * torch.where(x < 0, tail, torch.ones_like(x) - tail)


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh, "gelu": gelu}


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm (Zhang and Sennrich, 2019) with the roundings of transformers' modules.

    x: float `[..., H]`; weight: `[H]` of the same dtype. In float32 x is divided by the root, then rounded to
    the dtype, then multiplied by the weight in the dtype.
    """
    values = x.float()
    mean = lane_sum(values * values) / torch.full_like(values[..., 0], values.shape[-1])
    root = (mean + epsilon).double().sqrt().float()  # torch's float32 root is not always the nearest
    inverse = torch.ones_like(root) / root
    return weight * (values * inverse[..., None]).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of halves (Su et al., arXiv 2104.09864), every step rounded to the dtype.

    x: `[B, heads, T, D]`; cos, sin: `[B or 1, T, D]` of the same dtype.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
