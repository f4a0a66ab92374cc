"""The int8 linear layer (docs/numerics.md, "Product" and "Epilogue"): exact sums, one rounding order."""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8.errors import InputError
from llmint8.numerics import DIGIT_BASE, MAX_FEATURES
from llmint8.reference.rowwise import quantize_rows, split_digits, weight_scale


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ` of int8 `[M, K]` and int8 `[N, K]`, exact: int32 `[M, N]`.

    Through float64, whose 53 bits hold every sum; float32 would be wrong from K = 1,041 on.
    Raises InputError for K above 131,072, where a sum could leave int32.
    """
    if a.shape[1] > MAX_FEATURES:
        raise InputError(f"K = {a.shape[1]} exceeds {MAX_FEATURES}, beyond which int32 sums could overflow")
    return (a.to(torch.float64) @ b.to(torch.float64).T).to(torch.int32)


def combine(
    a: Tensor,
    b: Tensor,
    row_scale: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    c: Tensor | None = None,
    d: Tensor | None = None,
) -> Tensor:
    """The epilogue: integer sums to float32 outputs, in the order that the contract fixes.

    a, b: int32 `[M, N]`, the products of the low and high activation digits with the codes.
    c, d: int32 `[M, N]`, the same with the second weight digit; None without one.
    row_scale: float32 `[M]`; scale: float32 `[N]`; bias: any float `[N]`.

    Returns float32 `[M, N]`.
    """
    t = b.float() * DIGIT_BASE + a.float()
    if c is not None and d is not None:
        t = t + (d.float() + c.float() / DIGIT_BASE)
    y = t * (row_scale[:, None] * scale[None, :])
    if bias is not None:
        y = y + bias.float()
    return y


def linear(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor,
    bias: Tensor | None = None,
    threshold: float = 0.0,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """`x Wᵀ + bias` with an int8 weight: quantise rows, multiply digits exactly, de-quantise.

    x: float16, bfloat16 or float32 `[M, K]`; codes: int8 `[N, K]`; absmax: float32 `[N]`; bias: float `[N]`.
    threshold: 0 for no outliers, t > 0 for the paper's rule, negative for the automatic rule.
    outlier_cols, weight_low: int32 `[P]` and int8 `[N, P]`, the second weight digit of a few columns.

    Returns `[M, N]` in the dtype of x; every NaN is the canonical quiet one.
    Raises InputError for K above 131,072, or a column that the weight does not have.
    Source: arXiv 2208.07339, equation 8; where this differs from the paper, docs/numerics.md says so.
    """
    q, row_scale = quantize_rows(x, threshold)
    lo, hi = split_digits(q)
    a, b = int8_product(lo, codes), int8_product(hi, codes)
    c = d = None
    if outlier_cols is not None and weight_low is not None and outlier_cols.numel():
        columns = outlier_cols.long()
        if int(columns.min()) < 0 or int(columns.max()) >= codes.shape[1]:
            raise InputError(
                f"an outlier column is not within [0, {codes.shape[1]}): {outlier_cols.tolist()}"
            )
        c, d = int8_product(lo[:, columns], weight_low), int8_product(hi[:, columns], weight_low)
    y = combine(a, b, row_scale, weight_scale(absmax), bias, c, d).to(x.dtype)
    return y.masked_fill(y.isnan(), float("nan"))  # torch's own casts to bfloat16 give NaNs of several bits
