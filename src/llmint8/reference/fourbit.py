"""Block-wise quantisation of weights to 4 bits (QLoRA, Dettmers et al., arXiv 2305.14314, section 3).

A weight is cut into blocks of 64 elements in memory order, each scaled by its largest magnitude, and rounded
to the nearest of sixteen values: NF4, whose steps hold equal shares of a normal distribution, or FP4, floats
of one sign, two exponent and one mantissa bit. Two codes lie in a byte, the first in its upper half. The
scales may be quantised again, to 8 bits in blocks of 256 around their mean. Codes, scales and their layout
are those of bitsandbytes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmint8.errors import QuantizationError
from llmint8.numerics import FOURBIT_BLOCK, FP4_TWELFTHS, NF4_VALUES, SMALLEST_SCALE
from llmint8.reference.blockwise import as_blocks, dequantize_blockwise, dynamic_code_book
from llmint8.reference.decoder import float_linear
from llmint8.reference.rowwise import FLOATS

#: The names of the code books.
QUANT_TYPES = ("nf4", "fp4")
_GRID = 1 << 16


@functools.cache
def _code_book(quant_type: str) -> Tensor:
    if quant_type == "nf4":
        return torch.tensor(NF4_VALUES, device="cpu")  # also inside of `with torch.device("meta")`
    magnitudes = torch.tensor(FP4_TWELFTHS, device="cpu")
    signed = torch.cat([magnitudes, 0.0 - magnitudes])
    return signed / magnitudes.max()


def code_book(quant_type: str) -> Tensor:
    """The values of the sixteen codes, float32; those of FP4 in the order of its bits, sign first.

    Raises QuantizationError for a name other than "nf4" and "fp4".
    """
    if quant_type not in QUANT_TYPES:
        raise QuantizationError(f'quant_type must be "nf4" or "fp4", got {quant_type!r}')
    return _code_book(quant_type).clone()


def zero_bytes(quant_type: str) -> int:
    """Two codes whose value is 0, as a byte."""
    code = NF4_VALUES.index(0.0) if quant_type == "nf4" else FP4_TWELFTHS.index(0.0)
    return code << 4 | code


def fourbit_blocks(elements: int, block: int = FOURBIT_BLOCK) -> int:
    """How many blocks hold so many elements; the last may be short."""
    return -(-elements // block)


def quantize_4bit(weight: Tensor, quant_type: str, block: int = FOURBIT_BLOCK) -> tuple[Tensor, Tensor]:
    """Round a weight to 4-bit codes with one scale a block.

    weight: float16, bfloat16 or float32 of any shape with n elements.

    Returns codes uint8 `[ceil(n / 2), 1]`, two a byte, and absmax float32 `[ceil(n / block)]`. A value on the
    border between two codes gets the lower one.
    Raises QuantizationError for another dtype, a weight without data, a NaN or an infinity.
    """
    book = code_book(quant_type).to(weight.device)
    if weight.dtype not in FLOATS:
        raise QuantizationError(
            f"only float32, float16 and bfloat16 weights have 4-bit codes, got {weight.dtype}"
        )
    if weight.is_meta:
        raise QuantizationError("the weight has no data (meta device): load it first")
    flat = weight.detach().reshape(-1).float()
    if not bool(torch.isfinite(flat).all()):
        raise QuantizationError(
            "the weight holds a NaN or an infinity, which no scale can represent; repair it"
        )
    whole = flat.numel() // block * block
    absmax = flat[:whole].view(-1, block).abs().amax(dim=1) if whole else flat.new_zeros(0)
    inverse = torch.ones_like(absmax) / absmax.clamp(min=SMALLEST_SCALE)
    scaled = (flat[:whole].view(-1, block) * inverse[:, None]).view(-1)
    if whole < flat.numel():  # bitsandbytes divides the elements of a last, short block
        last = flat[whole:].abs().amax().clamp(min=SMALLEST_SCALE)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, flat[whole:] / last])
    order = torch.argsort(book, stable=True)
    midpoints = (book[order[:-1]] + book[order[1:]]) / 2
    codes = order[torch.bucketize(scaled.clamp(-1, 1), midpoints)].to(torch.uint8)
    codes = pad(codes, (0, codes.numel() % 2), value=zero_bytes(quant_type) & 15)
    return ((codes[::2] << 4) | codes[1::2])[:, None], absmax


def fourbit_codes(packed: Tensor, elements: int) -> Tensor:
    """The codes of packed bytes, uint8 `[elements]`."""
    flat = packed.reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).view(-1)[:elements]


def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    quant_type: str,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    block: int = FOURBIT_BLOCK,
) -> Tensor:
    """`code_book[code] · absmax` in float32, rounded to dtype.

    packed: uint8, n / 2 bytes of any shape; absmax: float32 `[ceil(n / block)]`. Returns a tensor of `shape`.
    """
    n = 1
    for size in shape:
        n *= size
    values = code_book(quant_type).to(packed.device)[fourbit_codes(packed, n).long()]
    scales = absmax.repeat_interleave(block)[:n]
    return (values * scales).to(dtype).view(shape)


class NestedScales(NamedTuple):
    """Scales in 8 bits: codes uint8 `[blocks]`, absmax float32 of each 256, and their mean, float32 `[]`."""

    codes: Tensor
    absmax: Tensor
    offset: Tensor


@functools.cache
def _nearest_codes() -> Tensor:
    """The nearest code of the dynamic code book for each of 65,536 equidistant values from -1 to 1, uint8."""
    grid = torch.arange(_GRID, device="cpu").float() / (_GRID - 1) * 2 - 1
    book = dynamic_code_book(True)
    return torch.bucketize(grid, (book[:-1] + book[1:]) / 2).to(torch.uint8)


def quantize_scales(absmax: Tensor) -> NestedScales:
    """Double quantisation (section 3, "Double Quantization"): what is left of scales without their mean.

    As bitsandbytes does it on a CPU, values go to the nearest of 65,536 steps first, then to the code nearest
    to that step; where all scales are equal the codes are 0.

    absmax: float32 `[blocks]`.
    """
    offset = absmax.mean() if len(absmax) else absmax.new_zeros(())
    blocks = as_blocks(absmax - offset)
    nested = blocks.abs().amax(dim=1) if len(blocks) else blocks.new_zeros(0)
    step = (blocks / nested[:, None] + 1) * ((_GRID - 1) / 2) + 0.5
    step = step.nan_to_num(0.0).clamp(0, _GRID - 1).view(-1)[: len(absmax)]
    return NestedScales(_nearest_codes().to(absmax.device)[step.long()], nested, offset)


def dequantize_scales(scales: NestedScales) -> Tensor:
    """Float32 `[blocks]`."""
    return dequantize_blockwise(scales.codes, scales.absmax) + scales.offset


def linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    quant_type: str,
    bias: Tensor | None,
    features: int,
    block: int = FOURBIT_BLOCK,
) -> Tensor:
    """`x Wᵀ + bias`: the weight as float32, sums in the fixed order, rounded to the dtype of x.

    x: float16, bfloat16 or float32 `[M, K]`; packed, absmax: of a weight `[N, K]`, N being `features`;
    bias: float `[N]` or None. Returns `[M, N]`; NaNs are canonical.
    """
    weight = dequantize_4bit(packed, absmax, quant_type, (features, x.shape[1]), block=block)
    return float_linear(x, weight, bias)
