"""The second weight digit of outlier columns: every instruction set returns the bits of the reference."""

import pytest
import torch

from agreement.cases import DTYPES, Case, low_digit, random_case, same_bits
from llmint8 import BackendError, ops
from llmint8.backends.native import Native

ODD_P = (1, 2, 3, 7, 17, 63, 64, 65)


def check(native: Native, case: Case) -> None:
    assert same_bits(native.linear(*case.arguments), ops.reference_linear(*case.arguments)), str(case)


def outliers(m: int, k: int, n: int, p: int, dtype: torch.dtype, threshold: float, seed: int = 0) -> Case:
    """Every third row has outliers in each second of the P columns; one column more has some in all rows."""
    generator = torch.Generator().manual_seed(seed)
    columns, low = low_digit(k, n, p, generator)
    x = torch.randn(m, k, generator=generator)
    x[::3, columns[::2].long()] *= 40
    x[:, k // 2] *= 30
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    absmax = torch.rand(n, generator=generator)
    return Case(x.to(dtype), weight, absmax, absmax.to(dtype), threshold, columns, low)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 6.0, -1.0])
@pytest.mark.parametrize("p", ODD_P)
def test_odd_numbers_of_columns(native: Native, dtype: torch.dtype, threshold: float, p: int) -> None:
    for m in (1, 2, 7, 9, 33):
        for n in (1, 17, 33):
            check(native, outliers(m, 66 + m, n, p, dtype, threshold))


@pytest.mark.parametrize("k", [1, 2, 3, 7, 17, 63, 64, 65])
def test_a_second_digit_for_every_column(native: Native, k: int) -> None:
    for m in (1, 4, 11):
        check(native, outliers(m, k, 19, k, torch.float32, -1.0))


def test_a_few_columns_of_wide_and_of_many_rows(native: Native) -> None:
    for m, n in ((1, 300), (8, 70), (70, 40)):
        check(native, outliers(m, 2100, n, 42, torch.bfloat16, -1.0))


def test_more_rows_than_are_multiplied_at_a_time(native: Native) -> None:
    check(native, outliers(300, 16_400, 3, 65, torch.bfloat16, 6.0))


@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("p", [2_621, 131_072])
def test_largest_sums_are_exact(native: Native, m: int, p: int) -> None:
    k = 131_072
    x = torch.full((m, k), 500.0)  # every element an outlier
    x[:, ::2] = 499.0
    x[0, 5] = 1.0
    weight = torch.full((2, k), 127, dtype=torch.int8)
    low = torch.full((2, p), -128, dtype=torch.int8)
    low[1] = 127
    columns = torch.arange(k - p, k, dtype=torch.int32)
    check(native, Case(x, weight, torch.tensor([1.0, 2.0]), None, 6.0, columns, low))


def test_rows_without_a_scale(native: Native) -> None:
    """Zero, tiny and non-finite rows beside a normal one: bias, bias, NaN, and nothing from each other."""
    case = outliers(12, 70, 20, 7, torch.float32, 6.0)
    case.x[1], case.x[3] = 0, 2.0**-110
    case.x[5, 2], case.x[8, int(case.outlier_cols[0])] = float("nan"), float("-inf")
    check(native, case)
    y = native.linear(*case.arguments)
    assert same_bits(y[[1, 3]], torch.stack([case.bias, case.bias]))
    assert y[[5, 8]].isnan().all()
    assert y[[0, 2, 4, 6, 7, 9, 10, 11]].isfinite().all()


def test_no_columns_are_no_second_digit(native: Native) -> None:
    case = random_case(7)
    x, weight, absmax, bias, threshold = case.arguments[:5]
    none = torch.empty(0, dtype=torch.int32), torch.empty(len(weight), 0, dtype=torch.int8)
    want = native.linear(x, weight, absmax, bias, threshold)
    assert same_bits(native.linear(x, weight, absmax, bias, threshold, *none), want)


def test_a_row_never_depends_on_its_batch(native: Native) -> None:
    for m in (2, 8, 9, 23):
        case = outliers(m, 140, 37, 17, torch.float16, -1.0, seed=m)
        batch = native.linear(*case.arguments)
        for row in range(m):
            alone = native.linear(case.x[row : row + 1], *case.arguments[1:])
            assert same_bits(alone, batch[row : row + 1]), f"row {row} of {m}"


def test_threads_do_not_change_bits(native: Native) -> None:
    threads = torch.get_num_threads()
    try:
        for m in (1, 40):
            case = outliers(m, 500, 300, 65, torch.bfloat16, 6.0)
            results = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(native.linear(*case.arguments))
            assert all(same_bits(r, results[0]) for r in results[1:])
    finally:
        torch.set_num_threads(threads)


def test_strides(native: Native) -> None:
    case = outliers(5, 64, 18, 8, torch.float32, 6.0)
    wide = torch.stack([case.outlier_cols, case.outlier_cols], dim=1)[:, 0]
    turned = case.weight_low.T.contiguous().T
    assert not wide.is_contiguous()
    assert not turned.is_contiguous()
    want = native.linear(*case.arguments)
    assert same_bits(native.linear(*case.arguments[:5], wide, turned), want)


@pytest.mark.parametrize("column", [-1, 64])
def test_a_column_that_is_not_there(native: Native, column: int) -> None:
    case = outliers(2, 64, 3, 3, torch.float32, 6.0)
    case.outlier_cols[1] = column
    with pytest.raises(BackendError, match="an outlier column is not within"):
        native.linear(*case.arguments)
