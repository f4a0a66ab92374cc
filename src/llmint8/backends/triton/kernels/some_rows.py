"""A linear layer of so few rows that tensor cores wait for memory. Both digits meet a weight as it passes."""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.blocks import program_blocks, within
from llmint8.backends.triton.kernels.epilogue import DIGIT_BASE, second_digit, store_outputs
from llmint8.backends.triton.kernels.order import wait_for_former
from llmint8.backends.triton.kernels.rows import NO_OUTLIERS
from llmint8.backends.triton.kernels.sums import block_sums


@triton.jit
def some_rows_kernel(
    lo, hi, scales, weight, absmax, bias, lo_some, hi_some, weight_low, y, partial, counters,
    m, n, k, padded_k, padded_p,
    RULE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LOW: tl.constexpr, DTYPE: tl.constexpr,
    SWAP: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Digits [m, padded_k] and weight int8 [n, k] to y [m, n]. GROUP: see `program_blocks`.

    SPLIT: so many programs share a block of outputs, each a part of its features. They leave their sums in
    partial, int32 [blocks, 2, SPLIT, BLOCK_M * BLOCK_N], and who is the last, by counters, adds them up.

    lo_some, hi_some [m, padded_p] and weight_low [n, padded_p]: the columns with a second weight digit;
    behind the last, digits are 0.
    """
    block, part = tl.program_id(0) // SPLIT, tl.program_id(0) % SPLIT
    first_row, first = program_blocks(block, m, n, BLOCK_M, BLOCK_N, GROUP)
    rows, columns = tl.arange(0, BLOCK_M), within(tl.arange(0, BLOCK_N), n - first)
    if EARLY:
        wait_for_former()
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT) * BLOCK_K
    begin = part * share
    start = first_row.to(tl.int64) * padded_k + begin
    low, high = block_sums(
        lo + start, hi + start, weight + first.to(tl.int64) * k + begin, begin, tl.minimum(begin + share, k),
        k, padded_k, rows, columns, m - first_row, RULE != NO_OUTLIERS, SWAP, EVEN, FULL,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    last = True
    if SPLIT > 1:
        own = tl.arange(0, low.shape[0])[:, None] * low.shape[1] + tl.arange(0, low.shape[1])[None, :]
        size: tl.constexpr = BLOCK_M * BLOCK_N
        partial += block.to(tl.int64) * (2 * SPLIT * size)
        tl.store(partial + part * size + own, low)
        if RULE != NO_OUTLIERS:
            tl.store(partial + (SPLIT + part) * size + own, high)
        tl.debug_barrier()  # all threads have stored before one of them counts
        last = tl.atomic_add(counters + block, 1, sem="acq_rel") == SPLIT - 1
        if last:
            low = tl.zeros_like(low)
            high = tl.zeros_like(high)
            for other in tl.range(0, SPLIT, num_stages=1):
                low += tl.load(partial + other * size + own, cache_modifier=".cg")
                if RULE != NO_OUTLIERS:
                    high += tl.load(partial + (SPLIT + other) * size + own, cache_modifier=".cg")
    if last:
        t = low.to(tl.float32)
        if RULE != NO_OUTLIERS:
            t = high.to(tl.float32) * DIGIT_BASE + t
        if HAS_LOW:
            start = first_row.to(tl.int64) * padded_p
            c, d = block_sums(
                lo_some + start, hi_some + start, weight_low + first.to(tl.int64) * padded_p, 0, padded_p,
                padded_p, padded_p, rows, columns, m - first_row, RULE != NO_OUTLIERS, SWAP, False, FULL,
                BLOCK_M, BLOCK_N, BLOCK_P,
            )  # fmt: skip
            t = t + second_digit(c, d)
        if SWAP:
            t = tl.trans(t)
        row_scale = tl.load(scales + first_row + rows, mask=rows < m - first_row, other=0.0)
        store_outputs(y, t, row_scale, absmax, bias, first_row, m, first, n, HAS_BIAS, DTYPE)
