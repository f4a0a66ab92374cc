"""A linear layer of few rows in one launch.

Every program quantises the rows itself, and reads its share of the weight once.
"""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.blocks import load_transposed
from llmint8.backends.triton.kernels.epilogue import DIGIT_BASE, second_digit, store_outputs
from llmint8.backends.triton.kernels.rows import NO_OUTLIERS, load_rows, low_digit, quantized, row_scales


@triton.jit
def few_rows_kernel(
    x, weight, absmax, bias, outlier_cols, weight_low, y, m, n, k, p, threshold,
    RULE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LOW: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALE_K: tl.constexpr,
):  # fmt: skip
    """x [m, k] with m <= BLOCK_M, weight int8 [n, k], y [m, n]; a grid of blocks of columns."""
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    first = tl.program_id(0) * BLOCK_N
    inverse, row_scale = row_scales(x, rows, m, k, threshold, RULE, BLOCK_M, SCALE_K)
    extra = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if HAS_LOW:
        c = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        d = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        weight_low += first.to(tl.int64) * p
        for start in range(0, p, BLOCK_K):
            index = start + tl.arange(0, BLOCK_K)
            features = tl.load(outlier_cols + index, mask=index < p, other=k)
            features = tl.where(features < 0, k, features)
            q = quantized(load_rows(x, rows, m, features, k), inverse)
            codes = load_transposed(weight_low, columns, n - first, index, p)
            low = low_digit(q)
            c = tl.dot(low.to(tl.int8), codes, c)
            d = tl.dot(((q - low) >> 8).to(tl.int8), codes, d)
        extra = second_digit(c, d)
    low_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    high_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    weight += first.to(tl.int64) * k
    for start in range(0, k, BLOCK_K):
        features = start + tl.arange(0, BLOCK_K)
        q = quantized(load_rows(x, rows, m, features, k), inverse)
        codes = load_transposed(weight, columns, n - first, features, k)
        low = low_digit(q)
        low_sums = tl.dot(low.to(tl.int8), codes, low_sums)
        if RULE != NO_OUTLIERS:
            high_sums = tl.dot(((q - low) >> 8).to(tl.int8), codes, high_sums)
    t = high_sums.to(tl.float32) * DIGIT_BASE + low_sums.to(tl.float32)
    if HAS_LOW:
        t = t + extra
    store_outputs(y, t, row_scale, absmax, bias, first * 0, m, first, n, HAS_BIAS, DTYPE)
