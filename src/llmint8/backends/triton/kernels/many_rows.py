"""A linear layer of many rows: an int8 matrix product of the low digits, and one of the high digits, over the
columns that have one. These are gathered first; where they are too many, all columns are multiplied."""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.blocks import program_blocks, within
from llmint8.backends.triton.kernels.epilogue import DIGIT_BASE, second_digit, store_outputs
from llmint8.backends.triton.kernels.order import wait_for_former
from llmint8.backends.triton.kernels.rows import NO_OUTLIERS
from llmint8.backends.triton.kernels.sums import block_sums


@triton.jit
def many_rows_kernel(
    lo, hi, scales, weight, absmax, bias, hi_found, weight_found, found, lo_some, hi_some, weight_low, y,
    m, n, k, padded_k, most, padded_p,
    RULE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LOW: tl.constexpr, DTYPE: tl.constexpr,
    EVEN: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Digits [m, padded_k] and weight int8 [n, k] to y [m, n]. GROUP: see `program_blocks`.

    found: address of the number of columns with a high digit; up to `most` lie in hi_found, [m, most], and
    weight_found, [n, most]. lo_some, hi_some [m, padded_p] and weight_low [n, padded_p]: the columns with a
    second weight digit; behind the last, digits are 0.
    """
    first_row, first = program_blocks(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    rows, columns = within(tl.arange(0, BLOCK_M), m - first_row), within(tl.arange(0, BLOCK_N), n - first)
    if EARLY:
        wait_for_former()
    count = 0
    if RULE != NO_OUTLIERS:
        count = tl.load(found)  # early, since the answer takes its time
    low, _ = block_sums(
        lo + first_row.to(tl.int64) * padded_k, lo, weight + first.to(tl.int64) * k, 0, k, k, padded_k,
        rows, columns, m, False, False, EVEN, True, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    t = low.to(tl.float32)
    if RULE != NO_OUTLIERS:
        few = count <= most
        digits_k, codes_k = tl.where(few, most, padded_k), tl.where(few, most, k)
        digits = tl.where(few, hi_found, hi) + first_row.to(tl.int64) * digits_k
        codes = tl.where(few, weight_found, weight) + first.to(tl.int64) * codes_k
        end = tl.where(few, count, k)
        high, _ = block_sums(
            digits, digits, codes, 0, end, codes_k, digits_k, rows, columns, m, False, False, EVEN, True,
            BLOCK_M, BLOCK_N, BLOCK_P,
        )  # fmt: skip
        t = high.to(tl.float32) * DIGIT_BASE + t
    if HAS_LOW:
        # One after the other: a third block of sums would not fit into registers.
        some_at = first_row.to(tl.int64) * padded_p
        weight_low += first.to(tl.int64) * padded_p
        c, _ = block_sums(
            lo_some + some_at, lo_some, weight_low, 0, padded_p, padded_p, padded_p, rows, columns, m,
            False, False, False, True, BLOCK_M, BLOCK_N, BLOCK_P,
        )  # fmt: skip
        d = tl.zeros_like(c)
        if RULE != NO_OUTLIERS:
            d, _ = block_sums(
                hi_some + some_at, hi_some, weight_low, 0, padded_p, padded_p, padded_p, rows, columns, m,
                False, False, False, True, BLOCK_M, BLOCK_N, BLOCK_P,
            )  # fmt: skip
        t = t + second_digit(c, d)
    row_scale = tl.load(scales + first_row + rows)
    store_outputs(y, t, row_scale, absmax, bias, first_row, m, first, n, HAS_BIAS, DTYPE)
