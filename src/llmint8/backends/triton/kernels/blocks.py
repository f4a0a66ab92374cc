"""Blocks of matrices, and which block a program has. Its start has 64 bits, offsets within it have 32."""

import triton
import triton.language as tl


@triton.jit
def program_blocks(m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """The first row and column of a program of a grid of one dimension.

    GROUP: so many blocks of rows go through the columns together, so that weights stay in the second cache.
    """
    blocks_m, blocks_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group = tl.program_id(0) // (GROUP * blocks_n)
    height = tl.minimum(blocks_m - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * blocks_n)
    return (group * GROUP + within % height) * BLOCK_M, within // height * BLOCK_N


@triton.jit
def load_block(matrix, rows, m, columns, k):
    """[rows, columns] of a row-major [m, k] of integers that starts with the block; zeros outside."""
    at = rows[:, None] * k + columns[None, :]
    return tl.load(matrix + at, mask=(rows[:, None] < m) & (columns[None, :] < k), other=0)


@triton.jit
def load_transposed(matrix, columns, n, features, k):
    """[features, columns] of a row-major [n, k] of integers that starts with the block; zeros outside."""
    at = columns[None, :] * k + features[:, None]
    return tl.load(matrix + at, mask=(columns[None, :] < n) & (features[:, None] < k), other=0)
