"""One step of an optimizer, a few blocks a program: read, de-quantise, update, quantise, write.

Operations come in the order of the reference, and none is fused: the bits are the reference's.
"""

import triton
import triton.language as tl

from llmint8.backends.triton.kernels.code_book import BLOCK, load_state, store_state
from llmint8.backends.triton.kernels.epilogue import narrowed_bits
from llmint8.reference import optimizers

ADAM = tl.constexpr(optimizers.ADAM.code)
ADEMAMIX = tl.constexpr(optimizers.ADEMAMIX.code)
LION = tl.constexpr(optimizers.LION.code)
MOMENTUM = tl.constexpr(optimizers.MOMENTUM.code)
RMSPROP = tl.constexpr(optimizers.RMSPROP.code)
RMSPROP_MOMENTUM = tl.constexpr(optimizers.RMSPROP_MOMENTUM.code)
HALF_BLOCK = tl.constexpr(BLOCK.value // 2)
#: A block is halved so often until one number is left.
HALVINGS = tl.constexpr(BLOCK.value.bit_length() - 1)


@triton.jit
def _second_moment(v, g, beta2, rest2):
    return v * beta2 + (g * rest2) * g


@triton.jit
def _updated(g, s0, s1, s2, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, RULE: tl.constexpr):
    """The update and the new states; the constants are the rule's, in the order of the reference."""
    if RULE == ADAM:
        s0 = s0 * c0 + g * c1
        s1 = _second_moment(s1, g, c2, c3)
        u = tl.div_rn(s0 * c6, tl.sqrt_rn(s1) * c4 + c5)
    elif RULE == ADEMAMIX:
        s0 = s0 * c0 + g * c1
        s1 = s1 * c7 + g * c8
        s2 = _second_moment(s2, g, c2, c3)
        u = tl.div_rn(s0 * c6 + s1 * c9, tl.sqrt_rn(s2) * c4 + c5)
    elif RULE == LION:
        mixed = s0 * c0 + g * c1
        u = tl.where(mixed > 0.0, 1.0, tl.where(mixed < 0.0, -1.0, tl.where(mixed == mixed, 0.0, mixed)))
        s0 = s0 * c2 + g * c3
    elif RULE == MOMENTUM:
        s0 = s0 * c0 + g * c1
        u = g * c2 + s0 * c3
    elif RULE == RMSPROP:
        s0 = _second_moment(s0, g, c0, c1)
        u = tl.div_rn(g, tl.sqrt_rn(s0) + c2)
    elif RULE == RMSPROP_MOMENTUM:
        s0 = _second_moment(s0, g, c0, c1)
        s1 = s1 * c3 + tl.div_rn(g, tl.sqrt_rn(s0) + c2)
        u = s1
    else:
        s0 = s0 + g * g
        u = tl.div_rn(g, tl.sqrt_rn(s0) + c0)
    return u, s0, s1, s2


@triton.jit
def _sums_of_squares(x, ROWS: tl.constexpr):
    """Per row of BLOCK, float64, halving the row again and again: the order of the reference."""
    x = x.to(tl.float64)
    x = x * x
    for i in tl.static_range(HALVINGS):
        x = tl.sum(tl.reshape(x, [ROWS, 2, HALF_BLOCK >> i]), 1)
    return tl.reshape(x, [ROWS])


@triton.jit
def optimizer_kernel(
    p, p_bits, g, s0, s1, s2, absmax0, absmax1, absmax2, books, cells, norms, count,
    decay, step, coupled_decay, update_decay, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9,
    RULE: tl.constexpr, STATES: tl.constexpr, SIGNED0: tl.constexpr, SIGNED1: tl.constexpr,
    SIGNED2: tl.constexpr, COUPLED: tl.constexpr, UPDATE_DECAY: tl.constexpr, MEASURE: tl.constexpr,
    DTYPE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """p, g and the states of `count` elements; p_bits is p as integers, for what is written.

    s0, s1, s2: uint8 codes with absmax float32 [blocks], or float32. books: float32 [2, BLOCK], the unsigned
    code book and the signed one; cells: their `code_book.cells`. SIGNED: 1 for a state with negative numbers.
    MEASURE: write the sums of squares of p and of the update to norms, float64 [blocks, 2], and change
    nothing else.
    """
    blocks = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0).to(tl.int64) * (ROWS * BLOCK)
    at = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    left = tl.minimum(count - first, ROWS * BLOCK).to(tl.int32)
    inside, blocks_inside = at < left, blocks * BLOCK < count
    weights = tl.load(p + first + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(g + first + at, mask=inside, other=0.0).to(tl.float32)
    if COUPLED:
        grad = grad + weights * coupled_decay
    s0 += first
    v0 = load_state(s0, absmax0, books, at, inside, blocks, blocks_inside, SIGNED0)
    v1 = v0
    v2 = v0
    if STATES > 1:
        s1 += first
        v1 = load_state(s1, absmax1, books, at, inside, blocks, blocks_inside, SIGNED1)
    if STATES > 2:
        s2 += first
        v2 = load_state(s2, absmax2, books, at, inside, blocks, blocks_inside, SIGNED2)
    u, v0, v1, v2 = _updated(grad, v0, v1, v2, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, RULE)
    if UPDATE_DECAY:
        u = u + weights * update_decay
    if MEASURE:
        # Behind the end a rule may have divided zero by zero.
        u = tl.where(inside, u, 0.0)
        tl.store(norms + blocks * 2, _sums_of_squares(weights, ROWS), mask=blocks_inside)
        tl.store(norms + blocks * 2 + 1, _sums_of_squares(u, ROWS), mask=blocks_inside)
    else:
        moved = weights * decay - u * step
        tl.store(p_bits + first + at, narrowed_bits(moved, DTYPE), mask=inside)
        v0 = tl.where(inside, v0, 0.0)
        store_state(s0, absmax0, cells, v0, at, inside, blocks, blocks_inside, SIGNED0)
        if STATES > 1:
            v1 = tl.where(inside, v1, 0.0)
            store_state(s1, absmax1, cells, v1, at, inside, blocks, blocks_inside, SIGNED1)
        if STATES > 2:
            v2 = tl.where(inside, v2, 0.0)
            store_state(s2, absmax2, cells, v2, at, inside, blocks, blocks_inside, SIGNED2)
