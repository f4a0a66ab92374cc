"""Linear layers with 4-bit weights: every instruction set returns the bits of the reference."""

import pytest
import torch

from llmint8 import ops, reference
from llmint8.backends.fourbit import dequantize, linear
from llmint8.backends.native import Native

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ISAS = [name for name, supported in Native().isas.items() if supported]
SHAPES = [(1, 1, 1), (1, 192, 37), (3, 5, 7), (16, 64, 33), (9, 576, 65), (4, 130, 128), (70, 96, 6)]


def weight(n: int, k: int, nested: bool, quant_type: str = "nf4") -> tuple:
    """What the operators take between x and the rest."""
    packed, absmax = reference.quantize_4bit(torch.randn(n, k), quant_type)
    if not nested:
        return packed, absmax, None, None, quant_type
    scales = reference.quantize_scales(absmax)
    return packed, scales.absmax, scales.codes, scales.offset, quant_type


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_bits_of_the_reference(isa: str, dtype: torch.dtype, m: int, k: int, n: int) -> None:
    torch.manual_seed(m)
    native, x = Native(isa), torch.randn(m, k).to(dtype)
    for nested in (False, True):
        for quant_type in ("nf4", "fp4"):
            w = weight(n, k, nested, quant_type)
            for bias in (None, torch.randn(n)):
                want = ops.linear_4bit(x, *w, n, bias)
                expected = reference.linear_4bit(x, w[0], _scales(*w[1:4]), quant_type, bias, n)
                assert torch.equal(bits(linear(native, x, *w, n, bias)), bits(expected))
                assert torch.equal(bits(want), bits(expected))
            values = reference.dequantize_4bit(w[0], _scales(*w[1:4]), quant_type, (n, k), dtype)
            assert torch.equal(bits(dequantize(native, *w, [n, k], dtype)), bits(values))


def _scales(absmax, codes, offset):
    return (
        absmax
        if codes is None
        else reference.dequantize_scales(reference.NestedScales(codes, absmax, offset))
    )


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_depends_on_itself_alone(isa: str) -> None:
    native, w = Native(isa), weight(40, 192, True)
    x = torch.randn(300, 192)
    x[3, 5], x[200, 0] = torch.inf, torch.nan
    whole = linear(native, x, *w, 40, None)
    for row in (0, 3, 17, 200, 299):
        assert torch.equal(bits(linear(native, x[row : row + 1], *w, 40, None)[0]), bits(whole[row]))
    assert whole[200].isnan().all()
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(bits(linear(native, x, *w, 40, None)), bits(whole))
    finally:
        torch.set_num_threads(threads)


def test_other_blocks_and_no_rows() -> None:
    x = torch.randn(2, 3, 96)
    packed, absmax = reference.quantize_4bit(torch.randn(10, 96), "nf4", 32)
    want = reference.linear_4bit(x.view(6, 96), packed, absmax, "nf4", None, 10, 32)
    assert torch.equal(
        ops.linear_4bit(x, packed, absmax, None, None, "nf4", 10, None, 32), want.view(2, 3, 10)
    )
    assert ops.linear_4bit(x[:0], packed, absmax, None, None, "nf4", 10, None, 32).shape == (0, 3, 10)
