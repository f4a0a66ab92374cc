"""`ops.input_gradient` on a GPU: tensor cores multiply in the type of the gradient, and add in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmint8.backends.triton import tiles
from llmint8.backends.triton.kernels.gradient import input_gradient_kernel
from llmint8.backends.triton.launch import launch
from llmint8.backends.triton.linear import check_devices
from llmint8.backends.triton.plan import BITS, DTYPES, EXACT, tile_constants

#: The type in which gradients of a dtype and weights meet in the matrix product.
PRODUCTS = dict(DTYPES)


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    absmax: Tensor,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """`dY · W`, `[..., K]`: W is rounded to the dtype of grad, a block at a time."""
    check_devices(grad, weight, absmax, outlier_cols, weight_low)
    (n, k), m = weight.shape, math.prod(grad.shape[:-1])
    out = grad.new_empty((*grad.shape[:-1], k))
    if not (m and n and k):
        return out.zero_()
    positions, low, p = weight, weight, 0
    if outlier_cols is not None and weight_low is not None and len(outlier_cols):
        low, p = weight_low.contiguous(), len(outlier_cols)
        positions = torch.full((k,), -1, dtype=torch.int32, device=grad.device)
        positions[outlier_cols.long()] = torch.arange(p, dtype=torch.int32, device=grad.device)
    tile, dtype = tiles.gradient_tile(grad.dtype), DTYPES[grad.dtype]
    tensors = (
        grad.contiguous(), weight.contiguous(), absmax.contiguous(), positions, low,
        out.view(BITS[grad.dtype]),
    )  # fmt: skip
    constants = {
        "HAS_LOW": p > 0, "DTYPE": dtype, "MULTIPLY_AS": PRODUCTS[grad.dtype],
        "GROUP": tiles.GROUP, **tile_constants(tile), **EXACT,
    }  # fmt: skip
    programs = tiles.ceil_div(m, tile.m) * tiles.ceil_div(k, tile.k)
    launch(input_gradient_kernel, programs, tensors, (m, n, k, p), constants)
    return out
