"""Columns of matrices side by side: those that have a high digit somewhere, or a second weight digit."""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.order import let_next_start, wait_for_former


@triton.jit
def list_kernel(marks, listed, count, k, EARLY: tl.constexpr, BLOCK_K: tl.constexpr):
    """The columns whose mark, int32 [k], is not 0, in any order, and how many: one int32, which was 0."""
    if EARLY:
        let_next_start()
        wait_for_former()
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    marked = (tl.load(marks + columns, mask=columns < k, other=0) != 0).to(tl.int32)
    total = tl.sum(marked, 0)
    if total > 0:
        first = tl.atomic_add(count, total)
        tl.store(listed + first + tl.cumsum(marked, 0) - 1, columns, mask=marked != 0)


@triton.jit
def gather_kernel(
    first, second, first_out, second_out, columns, count, first_rows, second_rows, k, first_k, second_k, most,
    COUNTED: tl.constexpr, EARLY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Columns of two int8 matrices [rows, first_k], [rows, second_k] to [rows, most]; 0 behind the last.

    columns: int32; those outside of k are 0. count: how many, and where COUNTED their address on the device;
    more than `most` are not gathered. A program has some rows of one matrix.
    """
    if EARLY:
        let_next_start()
        wait_for_former()
    found = tl.load(count) if COUNTED else count
    if found > most:
        return
    blocks = tl.cdiv(first_rows, BLOCK_M)
    of_first = tl.program_id(0) < blocks
    m = tl.where(of_first, first_rows, second_rows)
    block = tl.program_id(0) - tl.where(of_first, 0, blocks)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    source = tl.where(of_first, first, second) + rows.to(tl.int64) * tl.where(of_first, first_k, second_k)
    target = tl.where(of_first, first_out, second_out) + rows.to(tl.int64) * most
    for start in range(0, found, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        features = tl.load(columns + index, mask=index < found, other=-1)
        exists = (features >= 0) & (features < k)
        values = tl.load(source + features[None, :], mask=(rows < m) & exists[None, :], other=0)
        tl.store(target + index[None, :], values, mask=(rows < m) & (index[None, :] < most))
