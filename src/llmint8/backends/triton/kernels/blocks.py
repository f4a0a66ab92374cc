"""Blocks of matrices, and which block a program has. Its start has 64 bits, offsets within it have 32."""

import triton
import triton.language as tl


@triton.jit
def program_blocks(program, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """The first row and column of a program of a grid of one dimension.

    GROUP: so many blocks of rows go through the columns together, so that weights stay in the second cache.
    """
    blocks_m, blocks_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group = program // (GROUP * blocks_n)
    height = tl.minimum(blocks_m - group * GROUP, GROUP)
    within = program % (GROUP * blocks_n)
    return (group * GROUP + within % height) * BLOCK_M, within // height * BLOCK_N


@triton.jit
def within(indices, limit):
    """Indices of a block; in place of those from the limit on the first: what is read there goes nowhere."""
    return tl.where(indices < limit, indices, 0)
