"""Rows of activations to two int8 digits (docs/numerics.md, "Activations").

Magnitudes are compared as the integers that their bits are: a NaN is then larger than an infinity, and no
maximum drops it. Kernels must be compiled without fusing of multiplications and additions.
"""

import struct

import triton
import triton.language as tl

from llmint8 import numerics
from llmint8.backends.triton.kernels.order import let_next_start

CODE_MAX = tl.constexpr(float(numerics.CODE_MAX))
OUTLIER_MAX = tl.constexpr(float(numerics.OUTLIER_MAX))
MAGNITUDE_MAX = tl.constexpr(float(numerics.MAGNITUDE_MAX))
DIGIT_BASE = tl.constexpr(numerics.DIGIT_BASE)
AUTO_FACTOR = tl.constexpr(numerics.AUTO_FACTOR)


def float_bits(value: float) -> int:
    """The bits of a float32."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits


TINY_BITS = tl.constexpr(float_bits(numerics.TINY))
INFINITY_BITS = tl.constexpr(0x7F800000)
ONE_BITS = tl.constexpr(0x3F800000)
#: Added and taken away again, it leaves a float32 below 2^22 rounded half to even.
ROUNDER = tl.constexpr(12582912.0)
#: Rules of outliers: none, a fixed threshold, the automatic one.
NO_OUTLIERS = tl.constexpr(0)
FIXED = tl.constexpr(1)
AUTOMATIC = tl.constexpr(2)


@triton.jit
def rounded(x):
    """float32, |x| < 2^22, to int32, half to even."""
    return ((x + ROUNDER) - ROUNDER).to(tl.int32)


@triton.jit
def load_rows(x, rows, m, columns, k):
    """Elements of x [m, k], less than 2^31 of them, as float32 [rows, columns], zeros outside."""
    at = rows[:, None] * k + columns[None, :]
    return tl.load(x + at, mask=(rows[:, None] < m) & (columns[None, :] < k), other=0.0).to(tl.float32)


@triton.jit
def magnitude_bits(x):
    """The bits of |x|, int32."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def automatic_counts(x, largest):
    """|x| in steps of the largest magnitude [rows] of its row, int64."""
    return rounded(tl.abs(x) * tl.div_rn(MAGNITUDE_MAX, largest)[:, None]).to(tl.int64)


@triton.jit
def row_scales(x, rows, m, k, threshold, RULE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """inverse and row_scale, float32 [BLOCK_M]: `q = rint(x * inverse)`, `x = q * row_scale`.

    A row that is zero has 0 and 0; a row that is not finite 0 and NaN. The row is read once for each of: its
    largest magnitude; with the automatic rule the sum; the largest magnitude that is no outlier.
    """
    largest = tl.zeros([BLOCK_M], tl.int32)
    normal = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, k, BLOCK_K):
        bits = magnitude_bits(load_rows(x, rows, m, start + tl.arange(0, BLOCK_K), k))
        largest = tl.maximum(largest, tl.max(bits, 1))
        if RULE == FIXED:
            below = bits.to(tl.float32, bitcast=True) < threshold
            normal = tl.maximum(normal, tl.max(tl.where(below, bits, 0), 1))
    usable = (largest >= TINY_BITS) & (largest < INFINITY_BITS)
    amax = tl.where(usable, largest, ONE_BITS).to(tl.float32, bitcast=True)
    if RULE == NO_OUTLIERS:
        normal = largest
    if RULE == AUTOMATIC:
        total = tl.zeros([BLOCK_M], tl.int64)
        for start in range(0, k, BLOCK_K):
            values = load_rows(x, rows, m, start + tl.arange(0, BLOCK_K), k)
            values = tl.where(usable[:, None], values, 0.0)
            total += tl.sum(automatic_counts(values, amax), 1)
        for start in range(0, k, BLOCK_K):
            values = load_rows(x, rows, m, start + tl.arange(0, BLOCK_K), k)
            values = tl.where(usable[:, None], values, 0.0)
            below = automatic_counts(values, amax) * k <= AUTO_FACTOR * total[:, None]
            normal = tl.maximum(normal, tl.max(tl.where(below, magnitude_bits(values), 0), 1))
    by_outlier = tl.div_rn(OUTLIER_MAX, amax)
    has_normal = normal >= TINY_BITS
    divisor = tl.where(has_normal & usable, normal, ONE_BITS).to(tl.float32, bitcast=True)
    by_normal = tl.div_rn(CODE_MAX, divisor)
    inverse = tl.where(has_normal, tl.minimum(by_normal, by_outlier), by_outlier)
    scale = tl.div_rn(1.0, inverse)
    not_finite = largest >= INFINITY_BITS
    scale = tl.where(usable, scale, tl.where(not_finite, float("nan"), 0.0))
    return tl.where(usable, inverse, 0.0), scale


@triton.jit
def zero_rows(x, keep):
    """x float32 [rows, columns], zero in the rows that keep [rows] does not name, whatever they hold.

    Masked by bits: Triton 3.9 cannot hand a two-dimensional condition from one layout to another.
    """
    mask = tl.where(keep, -1, 0)
    return (x.to(tl.int32, bitcast=True) & mask[:, None]).to(tl.float32, bitcast=True)


@triton.jit
def quantized(x, inverse):
    """q int32 [rows, columns] of values and the inverse scales [rows] of their rows; 0 where that is 0."""
    return rounded(zero_rows(x, inverse > 0.0) * inverse[:, None])


@triton.jit
def low_digit(q):
    """The digit that normal elements have, int32."""
    return ((q + DIGIT_BASE // 2) & (DIGIT_BASE - 1)) - DIGIT_BASE // 2


@triton.jit
def codes_kernel(x, q, row_scale, k, threshold, RULE: tl.constexpr, BLOCK_K: tl.constexpr):
    """`ops.quantize_rows`: one program a row; q int16 [m, k], row_scale float32 [m]."""
    row = tl.program_id(0).to(tl.int64)
    x, q = x + row * k, q + row * k
    rows = tl.arange(0, 1)
    inverse, scale = row_scales(x, rows, 1, k, threshold, RULE, 1, BLOCK_K)
    tl.store(row_scale + row + rows, scale)
    for start in range(0, k, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        codes = quantized(load_rows(x, rows, 1, columns, k), inverse)
        tl.store(q + columns[None, :], codes.to(tl.int16), mask=columns[None, :] < k)


@triton.jit
def digits_kernel(
    x, lo, hi, row_scale, counters, marks, k, padded_k, threshold, counts,
    RULE: tl.constexpr, MARK: tl.constexpr, EARLY: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program a row: its digits, int8 [m, padded_k], 0 behind k.

    counters: int32 [counts], which become 0. MARK: marks, int32 [k], become 1 where a column has a high
    digit. EARLY: the next kernel may start at once; it waits itself.
    """
    if EARLY:
        let_next_start()
    row = tl.program_id(0).to(tl.int64)
    if row == 0:
        for start in range(0, counts, 1024):
            at = start + tl.arange(0, 1024)
            tl.store(counters + at, tl.zeros([1024], tl.int32), mask=at < counts)
    x, lo, hi = x + row * k, lo + row * padded_k, hi + row * padded_k
    rows = tl.arange(0, 1)
    inverse, scale = row_scales(x, rows, 1, k, threshold, RULE, 1, BLOCK_K)
    tl.store(row_scale + row + rows, scale)
    for start in range(0, padded_k, BLOCK_K):
        columns = (start + tl.arange(0, BLOCK_K))[None, :]
        codes = quantized(load_rows(x, rows, 1, start + tl.arange(0, BLOCK_K), k), inverse)
        low = low_digit(codes)
        tl.store(lo + columns, low.to(tl.int8), mask=columns < padded_k)
        if RULE != NO_OUTLIERS:
            high = (codes - low) >> 8
            tl.store(hi + columns, high.to(tl.int8), mask=columns < padded_k)
            if MARK:
                tl.store(marks + columns, tl.full([1, BLOCK_K], 1, tl.int32), mask=high != 0)
