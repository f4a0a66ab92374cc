"""Block-wise dynamic quantisation to 8 bits (Dettmers et al., arXiv 2110.02861, sections 1.3 and 2.1).

A tensor is cut into blocks of 256 elements in memory order, each scaled by its largest magnitude. The scaled
values are rounded to the nearest entry of a code book that is dense near zero: the dynamic tree, seven
decades, the topmost in 64 (signed) or 128 (unsigned) equal parts.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmint8.errors import InputError
from llmint8.numerics import OPTIMIZER_BLOCK, SMALLEST_NORMAL
from llmint8.reference.rowwise import FLOATS

_DECADES = 7
_LOWEST, _HIGHEST = 0.1, 1.0


def _boundaries(items: int) -> Tensor:
    """[0.1, 1] in equal parts, counted from the nearer end, each boundary rounded to float32 once."""
    low, high = torch.tensor([_LOWEST, _HIGHEST], dtype=torch.float32)
    step = ((high - low) / torch.tensor(items, dtype=torch.float32)).double()
    index = torch.arange(items + 1, dtype=torch.float64)
    upward, downward = low.double() + step * index, high.double() - step * (items - index)
    return torch.where(index < (items + 1) // 2, upward, downward).float()


@functools.cache
def _magnitudes(signed: bool) -> Tensor:
    """The code book's magnitudes, float32, ascending from 0 to 1: 129 of a signed one, 256 of an unsigned."""
    with torch.device("cpu"):  # cached: the first call may be inside of `with torch.device("meta")`
        return _make_magnitudes(signed)


def _make_magnitudes(signed: bool) -> Tensor:
    values = [torch.zeros(1)]
    for decade in range(_DECADES):
        edges = _boundaries(2**decade if signed else 2 ** (decade + 1))
        means = (edges[:-1] + edges[1:]) / 2
        values.append(torch.tensor(10.0 ** (decade + 1 - _DECADES)) * means)
    return torch.cat([*values, torch.ones(1)])


def dynamic_code_book(signed: bool) -> Tensor:
    """The 256 values of the codes, float32, ascending; equal to bitsandbytes' `create_dynamic_map(signed)`.

    A signed book holds -m for every magnitude m but 1, which only has its positive code.
    """
    magnitudes = _magnitudes(signed)
    return torch.cat([-magnitudes[1:-1].flip(0), magnitudes]) if signed else magnitudes.clone()


def zero_code(signed: bool) -> int:
    """The code whose value is 0."""
    return len(_magnitudes(True)) - 2 if signed else 0


def block_count(elements: int) -> int:
    """How many blocks hold so many elements; the last may be short."""
    return -(-elements // OPTIMIZER_BLOCK)


def as_blocks(x: Tensor) -> Tensor:
    """Contiguous x of any shape as `[blocks, 256]`, the last block filled with zeros."""
    flat = x.reshape(-1)
    return pad(flat, (0, block_count(flat.numel()) * OPTIMIZER_BLOCK - flat.numel())).view(
        -1, OPTIMIZER_BLOCK
    )


def quantize_blockwise(x: Tensor, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Round x to codes of the dynamic code book, with one scale per block of 256.

    x: float of any shape. signed: whether it may hold negative numbers; if not, they become 0.

    Returns codes uint8 of x's shape and absmax float32 `[blocks]`. Ties go to the magnitude nearer zero. A
    block whose magnitudes are all below 2^-126 is zero; a block with a NaN or an infinity has absmax NaN, and
    all of it de-quantises to NaN. Raises InputError for another dtype.
    """
    if x.dtype not in FLOATS:
        raise InputError(f"only float32, float16 and bfloat16 can be quantised block by block, got {x.dtype}")
    blocks = as_blocks(x.float())
    absmax = blocks.abs().amax(dim=1) if len(blocks) else blocks.new_zeros(0)
    finite, usable = torch.isfinite(absmax), absmax >= SMALLEST_NORMAL
    inverse = torch.ones_like(absmax) / torch.where(usable & finite, absmax, torch.ones_like(absmax))
    values = torch.where((usable & finite)[:, None], blocks, torch.zeros_like(blocks)) * inverse[:, None]
    magnitudes = _magnitudes(signed).to(x.device)
    midpoints = (magnitudes[:-1] + magnitudes[1:]) / 2
    k = torch.bucketize(values.abs(), midpoints)
    zero = zero_code(signed)
    codes = torch.where(values < 0, zero - k.clamp(max=zero), zero + k).to(torch.uint8)
    absmax = torch.where(usable, absmax, torch.zeros_like(absmax)).masked_fill(~finite, float("nan"))
    return codes.view(-1)[: x.numel()].reshape(x.shape), absmax


def dequantize_blockwise(codes: Tensor, absmax: Tensor, signed: bool = True) -> Tensor:
    """The values of codes: `code_book[code] · absmax`, float32 of the codes' shape.

    codes: uint8 of any shape. absmax: float32 `[blocks]`.
    """
    book = dynamic_code_book(signed).to(codes.device)
    values = as_blocks(book[codes.reshape(-1).long()]) * absmax[:, None]
    return values.view(-1)[: codes.numel()].reshape(codes.shape)
