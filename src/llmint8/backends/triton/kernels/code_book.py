"""Blocks of optimizer state to codes of the dynamic code book and back (docs/numerics.md, "Optimizers")."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8 import numerics
from llmint8.backends.triton.kernels.rows import (
    INFINITY_BITS,
    ONE_BITS,
    float_bits,
    magnitude_bits,
    zero_rows,
)
from llmint8.reference.blockwise import dynamic_code_book, zero_code

#: A magnitude's upper 16 bits name its cell, so narrow that it holds one midpoint between magnitudes at most.
#: Below 2^-23 all is nearest to zero: one cell; the last one starts at 1.
_BELOW_FIRST_CELL, _LAST_CELL = 0x33FF, 0x3F80
BELOW_FIRST_CELL = tl.constexpr(_BELOW_FIRST_CELL)
SMALLEST_NORMAL_BITS = tl.constexpr(float_bits(numerics.SMALLEST_NORMAL))
BLOCK = tl.constexpr(numerics.OPTIMIZER_BLOCK)
CELLS = tl.constexpr(_LAST_CELL - _BELOW_FIRST_CELL + 1)
#: The code of 0 in a signed book; in an unsigned one it is 0.
SIGNED_ZERO = tl.constexpr(zero_code(True))


def cells(signed: bool) -> Tensor:
    """What finds the nearest code without a search, int32 `[CELLS]`.

    The upper 16 bits are the k of the lowest magnitude in a cell; the lower 16 make the lower bits of a
    magnitude beyond the cell's midpoint carry into k.
    """
    magnitudes = dynamic_code_book(signed)[zero_code(signed) :]
    midpoints = ((magnitudes[:-1] + magnitudes[1:]) / 2).view(torch.int32)
    first = torch.arange(_BELOW_FIRST_CELL, _LAST_CELL + 2, dtype=torch.int32) << 16
    first[0] = 0
    below = torch.searchsorted(midpoints, first).int()
    holds = below[1:] > below[:-1]
    midpoint = midpoints[below[:-1].clamp(max=len(midpoints) - 1).long()]
    return (below[:-1] << 16) + torch.where(holds, 0xFFFF - (midpoint & 0xFFFF), 0)


@triton.jit
def load_state(state, absmax, books, at, inside, blocks, blocks_inside, SIGNED: tl.constexpr):
    """The values of a state, float32 `[rows, BLOCK]`, of 8 or 32 bits."""
    if state.dtype.element_ty == tl.uint8:
        codes = tl.load(state + at, mask=inside, other=0).to(tl.int32)
        scale = tl.load(absmax + blocks, mask=blocks_inside, other=0.0)
        values = tl.load(books + SIGNED * BLOCK + codes) * scale[:, None]
    else:
        values = tl.load(state + at, mask=inside, other=0.0)
    return values


@triton.jit
def store_state(state, absmax, cells, values, at, inside, blocks, blocks_inside, SIGNED: tl.constexpr):
    """The contrary of `load_state`: blocks are quantised by their largest magnitude."""
    if state.dtype.element_ty == tl.uint8:
        largest = tl.max(magnitude_bits(values), 1)
        usable = (largest >= SMALLEST_NORMAL_BITS) & (largest < INFINITY_BITS)
        scale = tl.where(usable, largest, ONE_BITS).to(tl.float32, bitcast=True)
        inverse = tl.div_rn(1.0, scale)
        values = zero_rows(values, usable)
        bits = magnitude_bits(values * inverse[:, None])
        cell = tl.maximum(bits >> 16, BELOW_FIRST_CELL) - BELOW_FIRST_CELL
        k = (tl.load(cells + SIGNED * CELLS + cell) + (bits & 0xFFFF)) >> 16
        zero = SIGNED * SIGNED_ZERO
        codes = tl.where(values < 0.0, zero - tl.minimum(k, zero), zero + k)
        tl.store(state + at, codes.to(tl.uint8), mask=inside)
        scale = tl.where(usable, scale, tl.where(largest < SMALLEST_NORMAL_BITS, 0.0, float("nan")))
        tl.store(absmax + blocks, scale, mask=blocks_inside)
    else:
        tl.store(state + at, values, mask=inside)
