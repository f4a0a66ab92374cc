"""A linear layer of many rows, whose digits exist already: one int8 matrix product, and a second one over the
pieces in which a row has a high digit. No launch depends on what the rows hold."""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.blocks import load_block, load_transposed, program_blocks
from llmint8.backends.triton.kernels.epilogue import DIGIT_BASE, second_digit, store_outputs
from llmint8.backends.triton.kernels.rows import NO_OUTLIERS


@triton.jit
def gather_kernel(
    lo, hi, flags, outlier_cols, lo_some, hi_some, p, k, padded_k, padded_p,
    RULE: tl.constexpr, BLOCK_P: tl.constexpr, FLAG_K: tl.constexpr,
):  # fmt: skip
    """The digits of the columns with a second weight digit: one program a row; int8 [m, padded_p]."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, padded_p, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        features = tl.load(outlier_cols + index, mask=index < p, other=-1)
        exists = (features >= 0) & (features < k)
        inside = index < padded_p
        low = tl.load(lo + row * padded_k + features, mask=exists, other=0)
        tl.store(lo_some + row * padded_p + index, low, mask=inside)
        if RULE != NO_OUTLIERS:
            flag = tl.load(flags + row * (padded_k // FLAG_K) + features // FLAG_K, mask=exists, other=0)
            high = tl.load(hi + row * padded_k + features, mask=flag != 0, other=0)
            tl.store(hi_some + row * padded_p + index, high, mask=inside)


@triton.jit
def many_rows_kernel(
    lo, hi, flags, scales, weight, absmax, bias, lo_some, hi_some, weight_low, y,
    m, n, k, padded_k, p, padded_p,
    RULE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LOW: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FLAG_K: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Digits [m, padded_k] and weight int8 [n, k] to y [m, n]. GROUP: see `program_blocks`."""
    first_row, first = program_blocks(m, n, BLOCK_M, BLOCK_N, GROUP)
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    rows_left, columns_left = m - first_row, n - first
    extra = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if HAS_LOW:
        c = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        d = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        lo_some += first_row.to(tl.int64) * padded_p
        hi_some += first_row.to(tl.int64) * padded_p
        weight_low += first.to(tl.int64) * p
        for start in range(0, p, FLAG_K):
            index = start + tl.arange(0, FLAG_K)
            codes = load_transposed(weight_low, columns, columns_left, index, p)
            c = tl.dot(load_block(lo_some, rows, rows_left, index, padded_p), codes, c)
            if RULE != NO_OUTLIERS:
                d = tl.dot(load_block(hi_some, rows, rows_left, index, padded_p), codes, d)
        extra = second_digit(c, d)
    weight += first.to(tl.int64) * k
    t = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if RULE != NO_OUTLIERS:
        high_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        pieces = padded_k // FLAG_K
        flags += first_row.to(tl.int64) * pieces
        hi += first_row.to(tl.int64) * padded_k
        for piece in range(pieces):
            flag = tl.load(flags + rows * pieces + piece, mask=rows < rows_left, other=0)
            if tl.max(flag.to(tl.int32), 0) > 0:
                features = piece * FLAG_K + tl.arange(0, FLAG_K)
                at = rows[:, None] * padded_k + features[None, :]
                digits = tl.load(hi + at, mask=flag[:, None] != 0, other=0)
                codes = load_transposed(weight, columns, columns_left, features, k)
                high_sums = tl.dot(digits, codes, high_sums)
        t = high_sums.to(tl.float32) * DIGIT_BASE
    low_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    lo += first_row.to(tl.int64) * padded_k
    for start in range(0, k, BLOCK_K):
        features = start + tl.arange(0, BLOCK_K)
        digits = load_block(lo, rows, rows_left, features, padded_k)
        low_sums = tl.dot(digits, load_transposed(weight, columns, columns_left, features, k), low_sums)
    t = t + low_sums.to(tl.float32)
    if HAS_LOW:
        t = t + extra
    row_scale = tl.load(scales + first_row + rows, mask=rows < rows_left, other=0.0)
    store_outputs(y, t, row_scale, absmax, bias, first_row, m, first, n, HAS_BIAS, DTYPE)
