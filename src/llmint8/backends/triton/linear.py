"""`ops.linear` and `ops.quantize_rows` on a GPU. No launch depends on what a tensor holds, nothing waits for
the device: calls can be captured in CUDA graphs."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from llmint8 import numerics, ops
from llmint8.backends.triton import tiles
from llmint8.backends.triton.kernels.rows import codes_kernel
from llmint8.backends.triton.launch import launch
from llmint8.backends.triton.plan import BITS, EXACT, Call, Operands, plan
from llmint8.errors import InputError
from llmint8.ops.linear import check_arguments
from llmint8.reference.rowwise import check_rows


@cache
def _rule(threshold: float) -> tuple[int, float]:
    """Which rule a threshold means, see `kernels.rows`, and the threshold as float32."""
    if threshold < 0:
        return 2, 0.0
    rounded = float(torch.tensor(threshold, dtype=torch.float32))
    return (1, rounded) if rounded > 0 else (0, 0.0)


def check_devices(x: Tensor, *others: Tensor | None) -> None:
    """Raise InputError unless all tensors lie on one device: kernels get addresses."""
    device = x.device
    for other in others:
        if other is not None and other.device != device:
            raise InputError(
                f"the input lies on {device}, a tensor of the layer on {other.device}; move one with .to()"
            )


def quantize_rows(x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """`ops.quantize_rows`."""
    check_rows(x)
    x, (m, k), (rule, bound) = x.contiguous(), x.shape, _rule(threshold)
    q = torch.empty((m, k), dtype=torch.int16, device=x.device)
    row_scale = torch.zeros(m, dtype=torch.float32, device=x.device)
    if m and k:
        block = min(tiles.ROW_BLOCK, tiles.power_of_2(k))
        constants = {"RULE": rule, "BLOCK_K": block, "num_warps": tiles.row_warps(block), **EXACT}
        launch(codes_kernel, m, (x, q, row_scale), (k, bound), constants)
    return q, row_scale


def linear(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    threshold: float,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """`ops.linear`. An outlier column that the weight does not have adds nothing: finding it would wait."""
    check_arguments(x, weight, absmax, bias, outlier_cols, weight_low)
    check_devices(x, weight, absmax, bias, outlier_cols, weight_low)
    (n, k), leading = weight.shape, x.shape[:-1]
    m = math.prod(leading)
    if not (m and n and k) or k > numerics.MAX_FEATURES:
        return ops.reference_linear(x, weight, absmax, bias, threshold, outlier_cols, weight_low)
    y, weight, absmax = x.new_empty((*leading, n)), weight.contiguous(), absmax.contiguous()
    rule, bound = _rule(threshold)
    columns, low, p = weight, weight, 0
    if outlier_cols is not None and weight_low is not None and len(outlier_cols):
        columns, low, p = outlier_cols.contiguous(), weight_low.contiguous(), len(outlier_cols)
    in_words = k % 4 == 0 and weight.storage_offset() % 4 == 0
    call = Call(x.dtype, rule, None if bias is None else bias.dtype, m, n, k, p, in_words, x.device)
    operands = Operands(
        x.contiguous(), weight, absmax, absmax if bias is None else bias.contiguous(), columns, low,
        y.view(BITS[x.dtype]), bound,
    )  # fmt: skip
    plan(call)(operands)
    return y
