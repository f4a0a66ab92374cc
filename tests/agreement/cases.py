"""Random inputs of the int8 linear layer, mild and adversarial, each from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
THRESHOLDS = (0.0, 6.0, -1.0, 1e-3, 3e38)
#: Sizes around every block length that a kernel uses.
ODD = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 25, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129)


@dataclass(frozen=True)
class Case:
    """x `[M, K]`, weight int8 `[N, K]`, absmax float32 `[N]`, bias `[N]` or None, the threshold's code.

    outlier_cols int32 `[P]`, weight_low int8 `[N, P]`: the second weight digit of a few columns, or None.
    """

    x: Tensor
    weight: Tensor
    absmax: Tensor
    bias: Tensor | None
    threshold: float
    outlier_cols: Tensor | None = None
    weight_low: Tensor | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As `ops.linear` takes them."""
        layer = self.x, self.weight, self.absmax, self.bias, self.threshold
        return *layer, self.outlier_cols, self.weight_low

    def __str__(self) -> str:
        bias = None if self.bias is None else self.bias.dtype
        columns = 0 if self.outlier_cols is None else len(self.outlier_cols)
        return (
            f"x {self.x.dtype} {list(self.x.shape)}, N {len(self.absmax)}, bias {bias}, t {self.threshold}, "
            f"P {columns}"
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit: NaN equals the same NaN, 0.0 differs from -0.0."""
    integer = {4: torch.int32, 2: torch.int16}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(integer), b.view(integer))


def _distort(x: Tensor, row: int, generator: torch.Generator, kind: int) -> None:
    """Turn one row of x into something that breaks careless kernels."""
    k = x.shape[1]
    at = int(torch.randint(k, (1,), generator=generator))
    tiny = torch.finfo(x.dtype).tiny
    match kind:
        case 0:
            x[row] = 0
        case 1:
            x[row] = -0.0
        case 2:  # every element an outlier
            x[row] = 50 * x[row].sign() + x[row]
        case 3:
            x[row, at] = 65504
        case 4:  # subnormals
            x[row] *= tiny / 8
        case 5:
            x[row, at] = float("nan")
        case 6:
            x[row, at] = float("-inf")
        case 7:  # ties: halves of one step of the scale
            x[row] = torch.randint(-254, 255, (k,), generator=generator) / 2
            x[row, at] = 127
        case 8:  # the smallest row that is not zero, and its neighbours
            x[row] = 0
            x[row, at] = 2.0**-100
            x[row, (at + 1) % k] = -(2.0**-101)
        case 9:  # a share of outliers at columns of the row's own
            share = torch.rand(k, generator=generator) < 0.05
            x[row, share] *= 40
        case 10:  # exactly the threshold
            x[row, at] = -6.0
        case _:
            x[row] = x[row, at]


def low_digit(k: int, n: int, p: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Second digits for P columns of a weight `[N, K]`, of any size that int8 has."""
    columns = torch.randperm(k, generator=generator)[:p].sort().values.int()
    return columns, torch.randint(-128, 128, (n, p), generator=generator).to(torch.int8)


def random_case(seed: int, largest: int = 192) -> Case:
    """One case; sizes up to `largest`, half of them odd ones, rows of every kind."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def size(limit: int) -> int:
        return min(choose.choice(ODD) if choose.random() < 0.5 else choose.randint(1, limit), limit)

    dtype = choose.choice(DTYPES)
    m, k, n = size(64), size(largest), size(largest)
    spread = 10 ** choose.uniform(-3, 1)
    x = (torch.randn(m, k, generator=generator) * spread).to(dtype)
    for row in range(m):
        if choose.random() < 0.3:
            _distort(x, row, generator, choose.randint(0, 11))
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    if choose.random() < 0.2:
        weight = (weight.sign() * 127).to(torch.int8)
    absmax = torch.rand(n, generator=generator) * 10 ** choose.uniform(-4, 2)
    absmax[torch.rand(n, generator=generator) < 0.05] = 0
    bias = torch.randn(n, generator=generator).to(choose.choice(DTYPES)) if choose.random() < 0.5 else None
    threshold = choose.choice(THRESHOLDS)
    columns = low = None
    if choose.random() < 0.4:
        columns, low = low_digit(k, n, min(choose.choice((0, *ODD)), k), generator)
    return Case(x, weight, absmax, bias, threshold, columns, low)
