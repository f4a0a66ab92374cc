"""Quantise to 8 bits and back: the two ways of the paper, for a whole tensor or for each row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmint8.numerics import CODE_MAX

#: Float32 `[R, C]`, and whether each row has a range of its own, to the values that 8 bits give back.
Rounding = Callable[[Tensor, bool], Tensor]


def absmax(values: Tensor, by_row: bool) -> Tensor:
    """Symmetric: `rint(v · 127 / max|v|)` codes within ±127, de-quantised."""
    largest = values.abs().amax(dim=1, keepdim=True) if by_row else values.abs().amax()
    factor = _safe_ratio(float(CODE_MAX), largest)
    return (values * factor).round() / factor


def zeropoint(values: Tensor, by_row: bool) -> Tensor:
    """Asymmetric: 254 steps from the smallest to the largest value, shifted by an integer zero-point.

    The range is widened to hold 0, so that a zero stays a zero.
    """
    low = (values.amin(dim=1, keepdim=True) if by_row else values.amin()).clamp(max=0)
    high = (values.amax(dim=1, keepdim=True) if by_row else values.amax()).clamp(min=0)
    factor = _safe_ratio(2.0 * CODE_MAX, high - low)
    shift = -CODE_MAX - (low * factor).round()
    codes = ((values * factor).round() + shift).clamp(-CODE_MAX, CODE_MAX)
    return (codes - shift) / factor


def _safe_ratio(numerator: float, denominator: Tensor) -> Tensor:
    """1 where nothing is to be scaled, since all values are 0 or too small for a finite factor."""
    ratio = torch.full_like(denominator, numerator) / denominator
    return torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))
