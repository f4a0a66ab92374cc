"""The sixteen values of NF4 and FP4 are made from their definitions; rounding goes to the nearest of them."""

import pytest
import torch

from llmint8 import ops, reference
from llmint8.errors import InputError, QuantizationError
from llmint8.reference.fourbit import fourbit_codes


def test_nf4_is_the_quantiles_of_the_normal_distribution() -> None:
    """QLoRA, appendix E: eight positive and seven negative quantiles and a zero, scaled to 1.

    The published values come from equidistant probabilities in float32; the outermost is 0.9677083.
    """

    def quantiles(count: int) -> torch.Tensor:
        probabilities = torch.linspace(0.9677083, 0.5, count + 1, dtype=torch.float32)[:-1]
        return torch.special.ndtri(probabilities.double())

    values = torch.cat([quantiles(8), torch.zeros(1), -quantiles(7)]).sort().values.float()
    assert torch.equal(values / values.max(), reference.code_book("nf4"))


def test_fp4_is_sign_exponent_and_mantissa() -> None:
    """Two exponent bits and one mantissa bit, scaled so that the largest is 1.

    Exponent bits 0 hold 0 and 1/16 (as bitsandbytes has it, no half of the step); 1, 2 and 3 hold 8, 4 and 2
    (times 1 or 1.5), in this order.
    """
    magnitudes = [0.0, 1 / 16] + [2.0 ** (4 - e) * (1 + m / 2) for e in (1, 2, 3) for m in (0, 1)]
    values = torch.tensor(magnitudes) / 12
    assert torch.equal(reference.code_book("fp4"), torch.cat([values, -values]))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("elements", [1, 2, 63, 64, 65, 129, 640])
def test_codes_are_of_the_nearest_value(quant_type: str, elements: int) -> None:
    torch.manual_seed(elements)
    weight = torch.randn(elements)
    packed, absmax = reference.quantize_4bit(weight, quant_type)
    assert packed.shape == (-(-elements // 2), 1)
    book = reference.code_book(quant_type).double()
    scaled = weight.double() / absmax.repeat_interleave(64)[:elements].double()
    distances = (scaled[:, None] - book).abs()
    got = distances.gather(1, fourbit_codes(packed, elements).long()[:, None])[:, 0]
    assert (got - distances.amin(dim=1)).max() < 1e-7
    for start in range(0, elements, 64):
        assert absmax[start // 64] == weight[start : start + 64].abs().max()


def test_zero_blocks_are_zero() -> None:
    weight = torch.zeros(3, 64)
    weight[1] = 1.5
    for quant_type in ("nf4", "fp4"):
        packed, absmax = reference.quantize_4bit(weight, quant_type)
        assert torch.equal(reference.dequantize_4bit(packed, absmax, quant_type, (3, 64)), weight)


def test_scales_keep_their_mean_and_eight_bits() -> None:
    torch.manual_seed(0)
    absmax = torch.rand(700)
    scales = reference.quantize_scales(absmax)
    assert scales.codes.dtype == torch.uint8
    assert scales.absmax.shape == (3,)
    assert scales.offset == absmax.mean()
    torch.testing.assert_close(reference.dequantize_scales(scales), absmax, atol=0.01, rtol=0)


def test_another_name_is_refused() -> None:
    with pytest.raises(QuantizationError, match="int4"):
        reference.code_book("int4")


def test_tensors_that_do_not_fit_are_refused_before_a_kernel_reads_past_their_end() -> None:
    packed, absmax = reference.quantize_4bit(torch.randn(20, 96), "nf4")
    nested = reference.quantize_scales(absmax)
    x = torch.randn(2, 96)
    wrong = [
        ("absmax must", packed, absmax[:2], None, None, 64),
        ("absmax must", packed, absmax.half(), None, None, 64),
        ("absmax must", packed, absmax, None, None, 32),
        ("absmax must", packed, nested.absmax[:0], nested.codes, nested.offset, 64),
        ("absmax_codes must", packed, nested.absmax, nested.codes[:3], nested.offset, 64),
        ("belong together", packed, nested.absmax, nested.codes, None, 64),
        ("block must", packed, absmax, None, None, 0),
    ]
    for reason, codes, scales, scale_codes, offset, block in wrong:
        weight = (codes, scales, scale_codes, offset, "nf4")
        with pytest.raises(InputError, match=reason):
            ops.linear_4bit(x, *weight, 20, None, block)
        with pytest.raises(InputError, match=reason):
            ops.dequantize_4bit(*weight, [20, 96], torch.float32, block)
    for codes in (packed[:5], packed.float()):
        with pytest.raises(InputError, match="uint8"):
            ops.dequantize_4bit(codes, absmax, None, None, "nf4", [20, 96], torch.float32)
    with pytest.raises(InputError, match="float64"):
        ops.dequantize_4bit(packed, absmax, None, None, "nf4", [20, 96], torch.float64)
