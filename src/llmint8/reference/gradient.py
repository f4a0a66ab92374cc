"""The gradient of the int8 linear layer (docs/numerics.md, "Gradient")."""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8.numerics import DIGIT_BASE
from llmint8.reference.rowwise import weight_scale


def input_gradient(
    grad: Tensor,
    codes: Tensor,
    absmax: Tensor,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """`dY · W`: the scales go into dY, then one output feature after the other is added.

    grad: float16, bfloat16 or float32 `[M, N]`; codes: int8 `[N, K]`; absmax: float32 `[N]`.
    outlier_cols, weight_low: int32 `[P]` and int8 `[N, P]`, the second weight digit of a few columns.

    Returns `[M, K]` in the dtype of grad, every NaN the canonical quiet one.
    """
    scaled = grad.float() * weight_scale(absmax)
    weight = codes.float()
    if outlier_cols is not None and weight_low is not None:
        weight[:, outlier_cols.long()] += weight_low.float() / DIGIT_BASE
    total = torch.zeros(grad.shape[0], codes.shape[1], device=grad.device)
    for n in range(codes.shape[0]):
        total = total + scaled[:, n, None] * weight[n]
    rounded = total.to(grad.dtype)
    return rounded.masked_fill(rounded.isnan(), float("nan"))
