"""`ops.linear` and `ops.quantize_rows` on a GPU. No launch depends on what a tensor holds, nothing waits for
the device: calls can be captured in CUDA graphs."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8 import numerics, ops
from llmint8.backends.triton import tiles
from llmint8.backends.triton.kernels.few_rows import few_rows_kernel
from llmint8.backends.triton.kernels.many_rows import gather_kernel, many_rows_kernel
from llmint8.backends.triton.kernels.rows import codes_kernel, digits_kernel
from llmint8.backends.triton.launch import launch
from llmint8.errors import InputError
from llmint8.ops.linear import check_arguments
from llmint8.reference.rowwise import check_rows

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
#: A fused multiplication and addition rounds once where the contract rounds twice.
EXACT = {"enable_fp_fusion": False}


def _rule(threshold: float) -> tuple[int, float]:
    """Which rule a threshold means, see `kernels.rows`, and the threshold as float32."""
    if threshold < 0:
        return 2, 0.0
    rounded = float(torch.tensor(threshold, dtype=torch.float32))
    return (1, rounded) if rounded > 0 else (0, 0.0)


def _row_block(k: int) -> int:
    return min(tiles.ROW_BLOCK, max(tiles.FLAG_K, 1 << (k - 1).bit_length()))


def check_devices(x: Tensor, *others: Tensor | None) -> None:
    """Raise InputError unless all tensors lie on one device: kernels get addresses."""
    for other in others:
        if other is not None and other.device != x.device:
            raise InputError(
                f"the input lies on {x.device}, a tensor of the layer on {other.device}; move one with .to()"
            )


def quantize_rows(x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """`ops.quantize_rows`."""
    check_rows(x)
    x, (m, k), (rule, bound) = x.contiguous(), x.shape, _rule(threshold)
    q = torch.empty((m, k), dtype=torch.int16, device=x.device)
    row_scale = torch.zeros(m, dtype=torch.float32, device=x.device)
    if m and k:
        constants = {"RULE": rule, "BLOCK_K": _row_block(k), **EXACT}
        launch(codes_kernel, m, (x, q, row_scale, k, bound), constants)
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
    y = x.new_empty((*leading, n))
    rows = _Layer(x, weight, absmax, bias, threshold, outlier_cols, weight_low)
    run = _few_rows if m <= tiles.FEW_ROWS else _many_rows
    run(rows, y.view(BITS[x.dtype]), m, n, k)
    return y


class _Layer:
    """The tensors of a call as kernels want them: contiguous, and one in place of each that is absent."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        threshold: float,
        outlier_cols: Tensor | None,
        weight_low: Tensor | None,
    ) -> None:
        self.x, self.weight, self.absmax = x.contiguous(), weight.contiguous(), absmax.contiguous()
        self.bias = self.absmax if bias is None else bias.contiguous()
        self.rule, self.threshold = _rule(threshold)
        self.columns = self.low = self.weight
        self.p = 0
        if outlier_cols is not None and weight_low is not None and len(outlier_cols):
            self.columns, self.low = outlier_cols.contiguous(), weight_low.contiguous()
            self.p = len(outlier_cols)
        self.constants: dict[str, Any] = {
            "RULE": self.rule,
            "HAS_BIAS": bias is not None,
            "HAS_LOW": self.p > 0,
            "DTYPE": DTYPES[x.dtype],
            **EXACT,
        }


def blocks(tile: tiles.Tile) -> dict[str, int]:
    """The constants and options of a tile."""
    return {
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def _few_rows(layer: _Layer, y: Tensor, m: int, n: int, k: int) -> None:
    tile = tiles.FEW_ROWS_TILE
    arguments = (
        layer.x, layer.weight, layer.absmax, layer.bias, layer.columns, layer.low, y, m, n, k, layer.p,
        layer.threshold,
    )  # fmt: skip
    constants = {**layer.constants, **blocks(tile), "SCALE_K": tiles.SCALE_BLOCK}
    launch(few_rows_kernel, triton.cdiv(n, tile.n), arguments, constants)


def _many_rows(layer: _Layer, y: Tensor, m: int, n: int, k: int) -> None:
    tile, device, flag_k = tiles.many_rows_tile(m, layer.p > 0), layer.x.device, tiles.FLAG_K
    padded_k = triton.cdiv(k, flag_k) * flag_k
    lo, hi = torch.empty((2, m, padded_k), dtype=torch.int8, device=device)
    flags = torch.empty((m, padded_k // flag_k), dtype=torch.int8, device=device)
    scales = torch.empty(m, dtype=torch.float32, device=device)
    flagged = {"RULE": layer.rule, "FLAG_K": flag_k, **EXACT}
    launch(
        digits_kernel, m, (layer.x, lo, hi, flags, scales, k, padded_k, layer.threshold),
        {**flagged, "BLOCK_K": _row_block(k)},
    )  # fmt: skip
    p, padded_p, lo_some, hi_some = layer.p, triton.cdiv(layer.p, 16) * 16, lo, hi
    if p:
        lo_some, hi_some = torch.empty((2, m, padded_p), dtype=torch.int8, device=device)
        launch(
            gather_kernel, m, (lo, hi, flags, layer.columns, lo_some, hi_some, p, k, padded_k, padded_p),
            {**flagged, "BLOCK_P": triton.next_power_of_2(padded_p)},
        )  # fmt: skip
    arguments = (
        lo, hi, flags, scales, layer.weight, layer.absmax, layer.bias, lo_some, hi_some, layer.low, y,
        m, n, k, padded_k, p, padded_p,
    )  # fmt: skip
    programs = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    constants = {**layer.constants, **blocks(tile), "FLAG_K": flag_k, "GROUP": tiles.GROUP}
    launch(many_rows_kernel, programs, arguments, constants)
