"""Integer sums to outputs (docs/numerics.md, "Epilogue")."""

import triton
import triton.language as tl

from llmint8 import numerics

CODE_MAX = tl.constexpr(float(numerics.CODE_MAX))
DIGIT_BASE = tl.constexpr(float(numerics.DIGIT_BASE))


@triton.jit
def second_digit(c, d):
    """What the second weight digit adds, float32: c and d are its products with both digits of x, int32."""
    return d.to(tl.float32) + c.to(tl.float32) / DIGIT_BASE


@triton.jit
def store_outputs(
    y, t, row_scale, absmax, bias, first_row, m, first_column, n,
    HAS_BIAS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Sums t float32, of rows and columns from the first on, to y [m, n] of DTYPE; NaNs become canonical.

    y is given as integers of the same size: a hardware's conversion chooses the bits of a NaN itself.
    """
    rows, columns = tl.arange(0, t.shape[0]), first_column + tl.arange(0, t.shape[1])
    inside = columns < n
    scale = tl.div_rn(tl.load(absmax + columns, mask=inside, other=0.0), CODE_MAX)
    t = t * (row_scale[:, None] * scale[None, :])
    if HAS_BIAS:
        t = t + tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    bits = narrowed_bits(t, DTYPE)
    y += first_row.to(tl.int64) * n + first_column
    at = rows[:, None] * n + tl.arange(0, t.shape[1])[None, :]
    tl.store(y + at, bits, mask=(first_row + rows[:, None] < m) & inside[None, :])


@triton.jit
def narrowed_bits(x, DTYPE: tl.constexpr):
    """The bits of float32 rounded to DTYPE, half to even, as int32 or int16."""
    bits = x.to(tl.int32, bitcast=True)
    if tl.float32 == DTYPE:
        narrow = tl.where(x == x, bits, 0x7FC00000)
    elif tl.bfloat16 == DTYPE:
        # In integers: the interpreter's own conversion does not round.
        upper = (bits + (0x8000 - 1) + ((bits >> 16) & 1)) >> 16
        narrow = tl.where(x == x, upper, 0x7FC0).to(tl.int16)
    else:
        half = x.to(tl.float16).to(tl.int16, bitcast=True)
        narrow = tl.where(x == x, half, 0x7E00).to(tl.int16)
    return narrow
