"""A linear layer of very few rows in one launch.

Every program quantises the rows itself, while the first weights are on their way, and streams its share of
the weight once, from memory to registers. Four products are one instruction.
"""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.epilogue import DIGIT_BASE, second_digit, store_outputs
from llmint8.backends.triton.kernels.rows import NO_OUTLIERS, load_rows, low_digit, quantized, row_scales


@triton.jit
def dot4(a, b, c, NATIVE: tl.constexpr):
    """c plus the products of the four int8 in each int32 of a and b. NATIVE: by CUDA's instruction for it."""
    if NATIVE:
        c = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        for byte in tl.static_range(4):
            c += ((a << (24 - 8 * byte)) >> 24) * ((b << (24 - 8 * byte)) >> 24)
    return c


@triton.jit
def packed(digits):
    """int8 values in int32 [rows, words, 4] as bytes of int32 [rows, words]."""
    shift = 8 * tl.arange(0, 4)
    return tl.sum((digits & 0xFF) << shift[None, None, :], 2)


@triton.jit
def few_rows_kernel(
    x, weight, absmax, bias, outlier_cols, weight_low, y, m, n, k, p, threshold,
    RULE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LOW: tl.constexpr, DTYPE: tl.constexpr,
    NATIVE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, WORDS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """x [m, k] with m <= ROWS, weight [n, k / 4] of four int8 each, k / 4 <= WORDS; y [m, n].

    A grid of any size: programs take blocks of columns in turn.
    """
    rows, columns, words = tl.arange(0, ROWS), tl.arange(0, BLOCK_N), tl.arange(0, WORDS)
    width = k // 4
    at = columns[:, None] * width + words[None, :]
    first = tl.program_id(0) * BLOCK_N
    inside = (columns[:, None] < n - first) & (words[None, :] < width)
    codes = tl.load(weight + first.to(tl.int64) * width + at, mask=inside, other=0)

    inverse, row_scale = row_scales(x, rows, m, k, threshold, RULE, ROWS, 4 * WORDS)
    features = 4 * words[:, None] + tl.arange(0, 4)[None, :]
    x_at = rows[:, None, None] * k + features[None, :, :]
    there = (rows[:, None, None] < m) & (features[None, :, :] < k)
    values = tl.load(x + x_at, mask=there, other=0.0).to(tl.float32)
    values = tl.reshape(values, [ROWS, 4 * WORDS])
    q = tl.reshape(quantized(values, inverse), [ROWS, WORDS, 4])
    low = low_digit(q)
    lo = packed(low)
    hi = lo
    if RULE != NO_OUTLIERS:
        hi = packed((q - low) >> 8)
    zero = tl.zeros([ROWS, BLOCK_N, WORDS], tl.int32)
    lo, _ = tl.broadcast(lo[:, None, :], zero)
    hi, _ = tl.broadcast(hi[:, None, :], zero)

    step = tl.num_programs(0) * BLOCK_N
    while first < n:
        current = codes
        after = first + step
        inside = (columns[:, None] < n - after) & (words[None, :] < width)
        codes = tl.load(weight + after.to(tl.int64) * width + at, mask=inside, other=0)
        current, _ = tl.broadcast(current[None, :, :], zero)
        t = tl.sum(dot4(current, lo, zero, NATIVE), 2).to(tl.float32)
        if RULE != NO_OUTLIERS:
            t = tl.sum(dot4(current, hi, zero, NATIVE), 2).to(tl.float32) * DIGIT_BASE + t
        if HAS_LOW:
            t = t + second_weight_digit(
                x, outlier_cols, weight_low, inverse, m, n, k, p, first, ROWS, BLOCK_N, BLOCK_P
            )
        store_outputs(y, t, row_scale, absmax, bias, first * 0, m, first, n, HAS_BIAS, DTYPE)
        first = after


@triton.jit
def second_weight_digit(
    x, outlier_cols, weight_low, inverse, m, n, k, p, first,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What the second weight digit adds to a block of columns, float32 [ROWS, BLOCK_N]."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK_N)
    c = tl.zeros([ROWS, BLOCK_N], tl.int32)
    d = tl.zeros([ROWS, BLOCK_N], tl.int32)
    weight_low += first.to(tl.int64) * p
    for start in range(0, p, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        features = tl.load(outlier_cols + index, mask=index < p, other=k)
        features = tl.where(features < 0, k, features)
        q = quantized(load_rows(x, rows, m, features, k), inverse)
        inside = (columns[:, None] < n - first) & (index[None, :] < p)
        codes = tl.load(weight_low + columns[:, None] * p + index[None, :], mask=inside, other=0).to(tl.int32)
        low = low_digit(q)
        c += tl.sum(codes[None, :, :] * low[:, None, :], 2)
        d += tl.sum(codes[None, :, :] * ((q - low) >> 8)[:, None, :], 2)
    return second_digit(c, d)
