"""Weights to codes: hand-computed rows, the second digit, and what is refused."""

import math

import pytest
import torch

from agreement.cases import same_bits
from llmint8 import QuantizationError
from llmint8.reference import (
    dequantize_weight,
    quantize_low_digit,
    quantize_weight,
    weight_absmax,
    weight_scale,
)


def test_rows_by_hand() -> None:
    weight = torch.tensor([[127.0, -0.5, 1.5, -2.5], [2.0, 1.0, -2.0, 0.0], [0.0, -0.0, 0.0, 0.0]])
    codes, absmax = quantize_weight(weight)
    assert codes.tolist() == [[127, 0, 2, -2], [127, 64, -127, 0], [0, 0, 0, 0]]  # 63.5 is a tie
    assert absmax.tolist() == [127.0, 2.0, 0.0]
    assert (codes.dtype, absmax.dtype) == (torch.int8, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 129), (33, 63), (65, 16)])
def test_codes_are_of_the_float32_values_and_never_minus_128(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, absmax = quantize_weight(weight)
    widened = weight.float()
    assert torch.equal(absmax, widened.abs().amax(1))
    assert torch.equal(codes.abs().amax(1), torch.full(shape[:1], 127, dtype=torch.int8))
    factor = torch.full_like(absmax, 127) / absmax
    assert torch.equal(codes.float(), (widened * factor[:, None]).round().clamp(-127, 127))


def test_layout_does_not_matter_and_the_weight_stays() -> None:
    weight = torch.randn(17, 9, generator=torch.Generator().manual_seed(2))
    before, version = weight.clone(), weight._version
    codes, absmax = quantize_weight(weight.T)
    want_codes, want_absmax = quantize_weight(weight.T.contiguous())
    assert torch.equal(codes, want_codes)
    assert codes.is_contiguous()
    assert same_bits(absmax, want_absmax)
    assert weight._version == version
    assert same_bits(weight, before)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(31, 15, generator=torch.Generator().manual_seed(3))
    whole = quantize_weight(weight)
    monkeypatch.setattr("llmint8.reference.rowwise._CHUNK", 40)
    parts = quantize_weight(weight)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_a_row_too_small_to_scale_is_zero() -> None:
    weight = torch.tensor([[2.0**-101, -(2.0**-101)], [2.0**-100, 0.0]])
    codes, absmax = quantize_weight(weight)
    assert codes.tolist() == [[0, 0], [127, 0]]
    assert absmax.tolist() == [0.0, 2.0**-100]


def test_the_scale_is_one_correctly_rounded_division() -> None:
    absmax = torch.rand(1000, generator=torch.Generator().manual_seed(4)) * 100
    exact = (absmax.double() / 127).float()  # float64 has enough bits for the one rounding to be right
    assert same_bits(weight_scale(absmax), exact)
    assert not torch.equal(weight_scale(absmax), absmax * (1 / torch.tensor(127.0)))


def test_dequantised_by_hand() -> None:
    codes, absmax = torch.tensor([[127, -64, 0]], dtype=torch.int8), torch.tensor([254.0])
    assert dequantize_weight(codes, absmax).tolist() == [[254.0, -128.0, 0.0]]
    assert dequantize_weight(codes, absmax, torch.bfloat16).dtype == torch.bfloat16


def test_the_second_digit_by_hand() -> None:
    weight = torch.tensor([[127.0, 10.25, -3.5, 0.7], [0.0, 0.0, 0.0, 0.0]])
    codes, absmax = quantize_weight(weight)
    assert codes[0].tolist() == [127, 10, -4, 1]
    low = quantize_low_digit(weight, codes, absmax, torch.tensor([1, 2, 3], dtype=torch.int32))
    assert low.tolist() == [[64, 127, -77], [0, 0, 0]]  # 0.25, 0.5 held to 127, -0.3 of 256
    assert low.dtype == torch.int8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_weight_is_named(bad: float) -> None:
    weight = torch.ones(9, 7)
    weight[8, 6] = bad
    with pytest.raises(QuantizationError, match=r"^model.up_proj.weight holds a NaN .* skip_modules$"):
        quantize_weight(weight, "model.up_proj.weight")


def test_what_only_float64_can_hold_is_refused() -> None:
    with pytest.raises(QuantizationError, match="infinity"):
        quantize_weight(torch.full((2, 2), 1e300, dtype=torch.float64))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), "two-dimensional floating-point weight, got torch.float32 \\[3\\]"),
        (torch.ones(3, 3, dtype=torch.int8), "got torch.int8"),
        (torch.empty(1, 131_073), "131073 input features exceed 131072"),
        (torch.empty(3, 3, device="meta"), "no data"),
    ],
)
def test_other_weights_are_refused(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        quantize_weight(weight)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_weights(shape: tuple[int, int]) -> None:
    codes, absmax = quantize_weight(torch.ones(shape))
    assert codes.shape == shape
    assert absmax.tolist() == [0.0] * shape[0]
    assert torch.equal(weight_absmax(torch.ones(shape)), absmax)
