"""Activations to integers: each line of the contract on a case that a person can check."""

import math

import pytest
import torch
from torch import Tensor

from agreement.cases import DTYPES, same_bits
from llmint8 import InputError
from llmint8.reference import quantize_rows, split_digits

TINY = 2.0**-100


def row(
    *values: float, dtype: torch.dtype = torch.float32, threshold: float = 0.0
) -> tuple[list[int], float]:
    q, scale = quantize_rows(torch.tensor([values], dtype=dtype), threshold)
    assert (q.dtype, scale.dtype) == (torch.int16, torch.float32)
    return q[0].tolist(), scale.item()


def test_the_largest_magnitude_becomes_127() -> None:
    assert row(127.0, -127.0, 1.0, 0.0) == ([127, -127, 1, 0], 1.0)
    assert row(1.0, 0.5) == ([127, 64], float(1 / torch.tensor(127.0)))  # 63.5 is a tie: to the even 64


@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_the_even_integer(sign: int) -> None:
    values = [127.0, 0.5, 1.5, 2.5, 125.5, 126.5]
    assert row(*(sign * v for v in values))[0] == [sign * v for v in (127, 0, 2, 2, 126, 126)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows_have_scale_zero(dtype: torch.dtype) -> None:
    assert row(0.0, -0.0, 0.0, dtype=dtype, threshold=6.0) == ([0, 0, 0], 0.0)


def test_a_row_below_two_to_the_minus_100_is_zero_and_the_next_one_is_not() -> None:
    below = float(torch.tensor(TINY).nextafter(torch.tensor(0.0)))
    assert row(below, 0.0) == ([0, 0], 0.0)
    assert row(TINY, -TINY) == ([127, -127], float(1 / (torch.tensor(127.0) / torch.tensor(TINY))))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", [0.0, 6.0, -1.0])
def test_a_non_finite_row_has_scale_nan_and_the_others_do_not_care(bad: float, threshold: float) -> None:
    x = torch.tensor([[1.0, 8.0, -3.0], [1.0, bad, 2.0], [0.5, 0.25, 9.0]])
    q, scale = quantize_rows(x, threshold)
    alone_q, alone_scale = quantize_rows(x[[0, 2]], threshold)
    assert torch.equal(q[[0, 2]], alone_q)
    assert torch.equal(scale[[0, 2]], alone_scale)
    assert q[1].tolist() == [0, 0, 0]
    assert math.isnan(scale[1])


def test_the_threshold_is_inclusive_and_outliers_leave_the_scale_alone() -> None:
    # 6.0 is an outlier, so 3.0 sets the scale: 6.0 becomes 254 = -2 + 256.
    assert row(6.0, 3.0, -1.5, threshold=6.0)[0] == [254, 127, -64]
    just_below = float(torch.tensor(6.0).nextafter(torch.tensor(0.0)))
    assert row(just_below, 3.0, threshold=6.0)[0] == [127, 64]  # 63.5000… rounds up
    assert row(6.0, 3.0, threshold=0.0)[0] == [127, 64]


def test_an_outlier_that_needs_more_than_two_digits_shrinks_the_normal_elements() -> None:
    q, scale = row(2560.0, 1.0, -0.5, threshold=6.0)  # 2560 · 127 exceeds 32512 = 127 · 256
    assert q == [32512, 13, -6]  # 12.7, and 6.35
    assert scale == float(1 / (torch.tensor(32512.0) / 2560))


def test_a_row_of_outliers_alone_keeps_sixteen_bits() -> None:
    assert row(65504.0, -32752.0, threshold=6.0)[0] == [32512, -16256]
    assert row(65504.0, -32752.0, threshold=6.0, dtype=torch.float16)[0] == [32512, -16256]


def test_normal_elements_below_two_to_the_minus_100_do_not_set_the_scale() -> None:
    q, _ = row(TINY, TINY / 2, threshold=TINY)
    assert q == [
        32512,
        16256,
    ]  # more than 127 in an element that is no outlier: its digits are exact all the same


def test_the_automatic_rule_is_eight_times_the_mean() -> None:
    # K = 10, one element v and nine ones: v · 10 > 8 (v + 9) beyond v = 36. At 36 itself the integers decide:
    # 32767 · 10 > 8 (32767 + 9 · 910), since 910.2 was rounded down.
    assert row(*[35.0] + [1.0] * 9, threshold=-1.0)[0] == [127] + [4] * 9
    assert row(*[36.0] + [1.0] * 9, threshold=-1.0)[0] == [4572] + [127] * 9
    assert row(*[37.0] + [1.0] * 9, threshold=-1.0)[0] == [4699] + [127] * 9
    # K = 8 or less can have none: v · 8 > 8 (v + rest) never holds.
    assert row(*[1e30] + [1e-3] * 7, threshold=-1.0)[0] == [127] + [0] * 7


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**-7, 2.0**20])
def test_the_automatic_rule_knows_no_scale(factor: float) -> None:
    x = torch.randn(9, 65, generator=torch.Generator().manual_seed(0))
    x[:, 3] *= 40
    q, scale = quantize_rows(x, -1.0)
    other_q, other_scale = quantize_rows(x * factor, -1.0)
    assert (q.abs() > 127).any()
    assert torch.equal(q, other_q)
    assert torch.equal(scale * factor, other_scale)


def test_thresholds_beyond_float32_are_none_or_no_outliers() -> None:
    x = torch.tensor([[3e38, 1.0]])
    for threshold in (1e300, 1e-300):
        assert torch.equal(quantize_rows(x, threshold)[0], quantize_rows(x, 0.0)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormal_inputs_of_half_types_are_numbers(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    x = torch.tensor([[smallest, smallest / 2, -smallest / 4]], dtype=dtype)
    q, scale = quantize_rows(x, 0.0)
    expected = [0, 0, 0] if smallest < TINY else [127, 64, -32]
    assert q[0].tolist() == expected
    assert bool(scale[0] > 0) == (smallest >= TINY)


def test_digits_of_every_int16_in_range() -> None:
    q = torch.arange(-32512, 32513, dtype=torch.int32)
    lo, hi = split_digits(q.to(torch.int16))
    assert (lo.dtype, hi.dtype) == (torch.int8, torch.int8)
    assert torch.equal(lo.int() + 256 * hi.int(), q)
    normal = q.abs() <= 127
    assert not hi[normal].any()
    assert torch.equal(lo[normal].int(), q[normal])


def test_digits_by_hand() -> None:
    lo, hi = split_digits(torch.tensor([128, 127, -128, -129, 32512, -32512, 384], dtype=torch.int16))
    assert lo.tolist() == [-128, 127, -128, 127, 0, 0, -128]
    assert hi.tolist() == [1, 0, 0, -1, 127, -127, 2]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_shapes(shape: tuple[int, int]) -> None:
    q, scale = quantize_rows(torch.ones(shape), 6.0)
    assert q.shape == shape
    assert scale.tolist() == [0.0] * shape[0]


def test_strides_do_not_matter_and_the_input_stays() -> None:
    x = torch.randn(33, 17, generator=torch.Generator().manual_seed(0)) * 4
    before, version = x.clone(), x._version
    for view in (x.T, x[::2], x[:, ::3], x[:1].expand(5, -1)):
        got, want = quantize_rows(view, 6.0), quantize_rows(view.contiguous(), 6.0)
        assert torch.equal(got[0], want[0])
        assert same_bits(got[1], want[1])
    assert x._version == version
    assert same_bits(x, before)


@pytest.mark.parametrize("x", [torch.ones(2, 2).double(), torch.ones(2, 2).int(), torch.ones(2)], ids=str)
def test_other_inputs_are_refused(x: Tensor) -> None:
    with pytest.raises(InputError, match="float32, float16 or bfloat16 of two dimensions"):
        quantize_rows(x, 0.0)
