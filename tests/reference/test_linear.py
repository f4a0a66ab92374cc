"""The whole layer in plain torch: by hand, exact at the largest K, and equal to an independent oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agreement.cases import DTYPES, Case, random_case, same_bits
from llmint8 import InputError
from llmint8.reference import combine, int8_product, linear, quantize_low_digit, quantize_weight
from reference import oracle

BOUNDED = settings(max_examples=40, deadline=None, derandomize=True)


def int8(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int8)


def test_a_product_by_hand() -> None:
    got = int8_product(int8([[1, -2, 3], [-128, 127, 0]]), int8([[4, 5, 6], [127, -127, 1]]))
    assert got.tolist() == [[12, 384], [123, -32385]]
    assert got.dtype == torch.int32


@pytest.mark.parametrize("k", [1_041, 131_071, 131_072])
@pytest.mark.parametrize(("a", "b"), [(-128, 127), (-128, -127), (127, 127)])
def test_products_are_exact_up_to_the_largest_k(k: int, a: int, b: int) -> None:
    left, right = torch.full((1, k), a, dtype=torch.int8), torch.full((2, k), b, dtype=torch.int8)
    right[1, -1] = 1  # the last element is not lost
    assert int8_product(left, right).tolist() == [[a * b * k, a * b * (k - 1) + a]]


def test_a_larger_k_is_refused() -> None:
    wide = torch.zeros((1, 131_073), dtype=torch.int8)
    with pytest.raises(InputError, match="131073"):
        int8_product(wide, wide)


def test_the_epilogue_by_hand() -> None:
    a, b = torch.tensor([[3]], dtype=torch.int32), torch.tensor([[2]], dtype=torch.int32)
    one, half = torch.ones(1), torch.tensor([0.5])
    assert combine(a, b, one, half).tolist() == [[257.5]]
    assert combine(a, b, one, half, torch.tensor([1.0], dtype=torch.bfloat16)).tolist() == [[258.5]]
    assert combine(a, b, one, half, None, c=128 * torch.ones_like(a), d=a).tolist() == [[(515 + 3.5) / 2]]


def test_the_epilogue_rounds_in_the_order_of_the_contract() -> None:
    """Two large integers, where adding as float32 differs from adding as integers."""
    a, b = torch.tensor([[1]], dtype=torch.int32), torch.tensor([[16_777_217]], dtype=torch.int32)
    one = torch.ones(1)
    assert combine(a, b, one, one).item() == 16_777_216 * 256  # 2^24 + 1 is rounded first, then 1 is lost
    scale = torch.tensor([1e-30])
    tiny = torch.tensor([1e-30])
    assert combine(a, b, tiny, scale).item() == 0.0  # row_scale · scale comes first, and underflows


@pytest.mark.parametrize("seed", range(60))
def test_equal_to_the_oracle(seed: int) -> None:
    case = random_case(seed, largest=33)
    assert same_bits(linear(*case.arguments), oracle.linear(*case.arguments)), str(case)


@pytest.mark.parametrize("k", [1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129])
@pytest.mark.parametrize("threshold", [0.0, 6.0, -1.0])
def test_equal_to_the_oracle_with_a_second_weight_digit(k: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(k)
    weight, x = torch.randn(5, k, generator=generator), 3 * torch.randn(7, k, generator=generator)
    x[:, k // 2] *= 20
    codes, absmax = quantize_weight(weight)
    columns = torch.unique(torch.tensor([0, k // 2, k - 1])).int()
    low = quantize_low_digit(weight, codes, absmax, columns)
    bias = torch.randn(5, generator=generator)
    given = (x, codes, absmax, bias, threshold, columns, low)
    assert same_bits(linear(*given), oracle.linear(*given))
    if k > 1:  # the one weight of a row is its largest, and has no second digit
        assert not torch.equal(linear(*given), linear(*given[:5]))


@pytest.mark.parametrize("columns", [[-1], [0, 3]])
def test_a_column_that_is_not_there(columns: list[int]) -> None:
    low = torch.zeros(2, len(columns), dtype=torch.int8)
    with pytest.raises(InputError, match=r"not within \[0, 3\)"):
        linear(torch.ones(1, 3), int8([[1, 2, 3]] * 2), torch.ones(2), None, 0.0, torch.tensor(columns), low)


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
mild = st.floats(-20, 20, width=32)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    m, k, n = draw(st.integers(0, 4)), draw(st.integers(0, 12)), draw(st.integers(0, 4))
    element = draw(st.sampled_from([floats, mild]))
    values = draw(st.lists(element, min_size=m * k, max_size=m * k))
    x = torch.tensor(values, dtype=torch.float32).reshape(m, k).to(draw(st.sampled_from(DTYPES)))
    codes = draw(st.lists(st.integers(-127, 127), min_size=n * k, max_size=n * k))
    scales = draw(st.lists(st.floats(0, 1e6, width=32), min_size=n, max_size=n))
    bias = draw(st.none() | st.lists(floats, min_size=n, max_size=n))
    threshold = draw(st.sampled_from([0.0, -1.0, 6.0]) | st.floats(1e-3, 100))
    weight = torch.tensor(codes, dtype=torch.int8).reshape(n, k)
    bias = None if bias is None else torch.tensor(bias)
    columns = sorted(draw(st.sets(st.integers(0, k - 1), max_size=3))) if k else []
    digits = draw(st.lists(st.integers(-128, 127), min_size=n * len(columns), max_size=n * len(columns)))
    low = torch.tensor(digits, dtype=torch.int8).reshape(n, len(columns))
    columns = torch.tensor(columns, dtype=torch.int32)
    return Case(x, weight, torch.tensor(scales), bias, threshold, columns, low)


@BOUNDED
@given(cases())
def test_anything_is_equal_to_the_oracle(case: Case) -> None:
    assert same_bits(linear(*case.arguments), oracle.linear(*case.arguments))


@BOUNDED
@given(cases(), st.randoms(use_true_random=False))
def test_rows_do_not_know_each_other(case: Case, random) -> None:
    whole = linear(*case.arguments)
    order = list(range(len(case.x)))
    random.shuffle(order)
    shuffled = linear(case.x[order], *case.arguments[1:])
    assert same_bits(shuffled, whole[order])
    padded = linear(torch.cat([case.x, torch.full_like(case.x[:1], math.nan)]), *case.arguments[1:])
    assert same_bits(padded[: len(case.x)], whole)
    for m, row in enumerate(case.x):
        assert same_bits(linear(row[None], *case.arguments[1:])[0], whole[m])


@BOUNDED
@given(cases())
def test_a_sign_in_gives_a_sign_out(case: Case) -> None:
    x, weight, absmax, _, threshold, *_ = case.arguments
    plus, minus = linear(x, weight, absmax, None, threshold), linear(-x, weight, absmax, None, threshold)
    assert torch.equal(plus.isnan(), minus.isnan())
    assert torch.equal(plus.nan_to_num(), -minus.nan_to_num())


@BOUNDED
@given(cases())
def test_no_input_is_written_to(case: Case) -> None:
    inputs = [t for t in case.arguments if isinstance(t, Tensor)]
    before = [(t.clone(), t._version) for t in inputs]
    linear(*case.arguments)
    for tensor, (copy, version) in zip(inputs, before, strict=True):
        assert tensor._version == version
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threshold", [0.0, 6.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_row_is_nan_and_a_zero_row_is_the_bias(dtype: torch.dtype, threshold: float) -> None:
    x = torch.ones(3, 17, dtype=dtype)
    x[0, 5], x[1] = math.nan, -0.0
    weight = torch.full((2, 17), 127, dtype=torch.int8)
    bias = torch.tensor([1.5, -2.0])
    y = linear(x, weight, torch.tensor([127.0, 254.0]), bias, threshold)
    assert y.dtype == dtype
    assert y[0].isnan().all()
    assert torch.equal(y[1], bias.to(dtype))
    assert torch.equal(y[2], torch.tensor([17 * 127 + 1.5, 17 * 254 - 2.0]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_times_codes_is_exact(dtype: torch.dtype) -> None:
    """Where inputs and weights are integers of at most 127 and both maxima are 127, nothing is rounded."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-127, 128, (5, 16), generator=generator).float() for _ in range(2))
    x[:, 0], w[:, 0] = 127, -127
    codes, absmax = quantize_weight(w)
    y = linear(x.to(dtype), codes, absmax)
    assert torch.equal(y, (x.double() @ w.double().T).to(dtype))
