"""The gradient of an int8 linear layer: the weight becomes floats a block at a time, in registers."""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.blocks import program_blocks
from llmint8.backends.triton.kernels.epilogue import CODE_MAX, DIGIT_BASE, narrowed_bits


@triton.jit
def input_gradient_kernel(
    grad, weight, absmax, positions, weight_low, out, m, n, k, p,
    HAS_LOW: tl.constexpr, DTYPE: tl.constexpr, MULTIPLY_AS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """grad [m, n] times weight int8 [n, k] to out [m, k], given as integers of the same size.

    positions: int32 [k], where a column is among those with a second weight digit; -1 for the others.
    MULTIPLY_AS: the type that gradients and de-quantised weights have in the matrix product.
    """
    first_row, first = program_blocks(tl.program_id(0), m, k, BLOCK_M, BLOCK_K, GROUP)
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    rows_left, columns_left = m - first_row, k - first
    position = tl.full([BLOCK_K], -1, tl.int32)
    if HAS_LOW:
        position = tl.load(positions + first + columns, mask=columns < columns_left, other=-1)
    grad += first_row.to(tl.int64) * n
    weight += first
    sums = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, n, BLOCK_N):
        features = tl.arange(0, BLOCK_N)
        left = n - start
        g = tl.load(
            grad + start + rows[:, None] * n + features[None, :],
            mask=(rows[:, None] < rows_left) & (features[None, :] < left),
            other=0.0,
        )
        scale = tl.div_rn(tl.load(absmax + start + features, mask=features < left, other=0.0), CODE_MAX)
        at = features[:, None] * k + columns[None, :]
        inside = (features[:, None] < left) & (columns[None, :] < columns_left)
        values = tl.load(weight + tl.cast(start, tl.int64) * k + at, mask=inside, other=0).to(tl.float32)
        if HAS_LOW:
            at = features[:, None] * p + position[None, :]
            has = (features[:, None] < left) & (position[None, :] >= 0)
            low = tl.load(weight_low + tl.cast(start, tl.int64) * p + at, mask=has, other=0)
            values += low.to(tl.float32) / DIGIT_BASE
        values = (values * scale[:, None]).to(MULTIPLY_AS)
        sums = tl.dot(g.to(MULTIPLY_AS), values, sums, input_precision="ieee")
    out += first_row.to(tl.int64) * k + first
    at = rows[:, None] * k + columns[None, :]
    inside = (rows[:, None] < rows_left) & (columns[None, :] < columns_left)
    tl.store(out + at, narrowed_bits(sums, DTYPE), mask=inside)
