"""Every instruction set returns the bits of the reference, at every odd size, on every kind of row."""

import pytest
import torch

from agreement.cases import DTYPES, ODD, THRESHOLDS, Case, random_case, same_bits
from llmint8 import ops, reference
from llmint8.backends.native import Native


def check(native: Native, case: Case) -> None:
    before = [None if t is None else t._version for t in (case.x, case.weight, case.absmax, case.bias)]
    want = ops.reference_linear(*case.arguments)
    assert same_bits(native.linear(*case.arguments), want), f"linear: {case}"
    q, row_scale = native.quantize_rows(case.x, case.threshold)
    want_q, want_scale = reference.quantize_rows(case.x, case.threshold)
    assert torch.equal(q, want_q), f"quantize_rows: {case}"
    assert same_bits(row_scale, want_scale), f"quantize_rows: {case}"
    after = [None if t is None else t._version for t in (case.x, case.weight, case.absmax, case.bias)]
    assert before == after


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_random_cases(native: Native, block: int) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        check(native, random_case(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("k", ODD)
def test_odd_sizes(native: Native, dtype: torch.dtype, threshold: float, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    for m in (1, 2, 7, 9, 33):
        x = torch.randn(m, k, generator=generator).to(dtype)
        x[:, :: max(k // 5, 1)] *= 30
        for n in (1, 17, 33):
            weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
            absmax = torch.rand(n, generator=generator)
            check(native, Case(x, weight, absmax, absmax.to(dtype), threshold))


@pytest.mark.parametrize("m", [1, 20])
def test_largest_sums_are_exact(native: Native, m: int) -> None:
    k = 131_072
    x = torch.full((m, k), 500.0)  # every element an outlier
    x[:, ::2] = 499.0
    x[0, 5] = 1.0
    weight = torch.full((3, k), 127, dtype=torch.int8)
    weight[1] = -127
    weight[2, ::2] = -127
    check(native, Case(x, weight, torch.tensor([1.0, 2.0, 3.0]), None, 6.0))
    check(native, Case(x, weight, torch.tensor([1.0, 2.0, 3.0]), None, 0.0))


def test_more_rows_than_are_multiplied_at_a_time(native: Native) -> None:
    m, k = 300, 16_400  # digits of 300 rows take more than the 8 MiB of a chunk
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(m, k, generator=generator).bfloat16()
    x[::3, 7] = 90
    weight = torch.randint(-127, 128, (3, k), generator=generator).to(torch.int8)
    check(native, Case(x, weight, torch.tensor([1.0, 2.0, 3.0]), None, 6.0))


def test_every_int8_weight_is_exact(native: Native) -> None:
    """Also -128, which no quantisation makes: no kernel may saturate."""
    x = torch.randn(19, 77, generator=torch.Generator().manual_seed(0)) * 10
    weight = torch.full((21, 77), -128, dtype=torch.int8)
    check(native, Case(x, weight, torch.ones(21), None, 6.0))
    check(native, Case(x[:3], weight, torch.ones(21), None, -1.0))


@pytest.mark.parametrize("k", [1024, 1028, 2050])
@pytest.mark.parametrize("m", [4, 16, 40, 64, 70])
def test_large_sums_of_a_few_outliers(native: Native, m: int, k: int) -> None:
    """As many words of largest digits as are still listed: their sums times 256 just fit with the others."""
    x = torch.ones(m, k)
    words = torch.arange(k) // 4
    x[:, words % 32 < 14] = 256.0  # q = 32512, and 127 elsewhere
    x[1::3, 9::128] = 3.0  # rows whose words differ
    x[2::3, -5:] = -256.0
    weight = torch.full((35, k), 127, dtype=torch.int8)
    weight[1], weight[2, ::2] = -127, -127
    check(native, Case(x, weight, torch.rand(35), None, 6.0))
    x[:, words % 32 >= 3] = -1.0
    check(native, Case(x, weight, torch.rand(35), torch.rand(35), 6.0))


@pytest.mark.parametrize("m", [1, 3, 8, 16, 22, 64, 70])
@pytest.mark.parametrize("k", [576, 4096])
@pytest.mark.parametrize("outliers", [6, 511, 512, 530])
def test_sums_that_an_int32_just_holds(native: Native, m: int, k: int, outliers: int) -> None:
    """Low sums and 256 high ones are added up as integers where these cannot overflow, and else are not."""
    x = torch.full((m, k), 0.01)
    x[:, :outliers] = 256.0  # q = 32512
    x[:, -1] = 1.0
    weight = torch.full((35, k), 127, dtype=torch.int8)
    weight[1], weight[2, ::2], weight[3] = -127, -127, -128
    check(native, Case(x, weight, torch.rand(35), None, 6.0))
    x[m // 2, 5] = 1.0  # a row that differs
    check(native, Case(x, weight, torch.rand(35), torch.rand(35), 6.0))


@pytest.mark.parametrize("m", [1, 3, 8, 16, 22, 64, 70])
@pytest.mark.parametrize("large", [1000, 1032, 1033, 1100, 1900])
def test_sums_that_a_float_just_holds(native: Native, m: int, large: int) -> None:
    """Low sums that are rounded to a float, and once more when 256 high ones are added."""
    x = torch.full((m, 2048), 0.001)
    x[:, :large] = 5.0  # q = 127
    x[:, -16:] = 1280.0  # q = 32512
    weight = torch.randint(121, 128, (99, 2048), generator=torch.Generator().manual_seed(m)).to(torch.int8)
    check(native, Case(x, weight, torch.ones(99), None, 6.0))
    check(native, Case(x.bfloat16(), -weight, torch.ones(99), None, 6.0))


@pytest.mark.parametrize("m", [13, 16, 40, 64])
@pytest.mark.parametrize("k", [128, 130, 131, 132, 260, 576])
def test_outliers_in_columns_that_rows_share(native: Native, m: int, k: int) -> None:
    """In the last word too, which may not be a whole one; and what only some rows have among them."""
    generator = torch.Generator().manual_seed(k)
    weight = torch.randint(-127, 128, (40, k), generator=generator).to(torch.int8)
    for extra in (0.0, 0.02):
        x = torch.randn(m, k, generator=generator).clamp(-4, 4)
        x[:, [0, 2, k // 3, k - 2, k - 1]] *= 40
        x[torch.rand(m, k, generator=generator) < extra] = -50.0
        check(native, Case(x, weight, torch.rand(40), None, 6.0))


@pytest.mark.parametrize("m", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("k", [130, 577, 1030, 4096])
@pytest.mark.parametrize("apart", [1, 64])
def test_outliers_in_columns_of_each_row(native: Native, m: int, k: int, apart: int) -> None:
    """A row has what no other has among them: few and many of the 64 digits that are multiplied at a time."""
    generator = torch.Generator().manual_seed(k)
    weight = torch.randint(-127, 128, (37, k), generator=generator).to(torch.int8)
    normal = torch.randn(m, k, generator=generator).clamp(-4, 4)
    even = torch.rand(m, k, generator=generator) * 8 - 4  # sums of 4096 are too large to add high ones up
    for x in (normal, even):
        for row in range(m):
            x[row, (k - 1 - row * apart * 3) % k] = 50.0
            x[row, row * apart % k] = -50.0
        x[:, 0] = 40.0
        check(native, Case(x, weight, torch.rand(37), None, 6.0))
        x[m // 2].clamp_(-4, 4)
        check(native, Case(x, weight, torch.rand(37), torch.rand(37), 6.0))


@pytest.mark.parametrize("m", [3, 6, 12, 24])
@pytest.mark.parametrize("k", [200, 577, 4096])
@pytest.mark.parametrize("share", [0.004, 0.02, 0.1, 0.5])
def test_any_share_of_outliers(native: Native, m: int, k: int, share: float) -> None:
    """So few that steps of 64 digits are folded into one, so many that none is, and all between."""
    generator = torch.Generator().manual_seed(k)
    weight = torch.randint(-127, 128, (37, k), generator=generator).to(torch.int8)
    x = torch.randn(m, k, generator=generator).clamp(-4, 4)
    x[torch.rand(m, k, generator=generator) < share] = -50.0
    check(native, Case(x, weight, torch.rand(37), None, 6.0))
    x[:, k // 2 :].clamp_(-4, 4)  # many in some steps, none in others
    x[:, -1] = 60.0
    check(native, Case(x, weight, torch.rand(37), None, 6.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [16, 64, 577, 4096])
def test_automatic_rule_at_its_bound(native: Native, dtype: torch.dtype, k: int) -> None:
    """Elements that are outliers by one unit in the last place, and others that just are not."""
    weight = torch.randint(-127, 128, (3, k), generator=torch.Generator().manual_seed(k)).to(torch.int8)
    for seed in range(20):
        x = torch.randn(4, k, generator=torch.Generator().manual_seed(seed)) * 3.0 ** (seed - 10)
        x[:, 9] *= 30
        for _ in range(5):  # until the sum is that of the row with these elements
            row = x.to(dtype).float()
            factor = 32767 / row.abs().amax(1)
            most = (8 * (row.abs() * factor[:, None]).round().sum(1) / k).floor()
            x[:, :7] = ((most + 0.5) / factor)[:, None]
        bits = x[:, :7].to(dtype).view(torch.int32 if dtype == torch.float32 else torch.int16)
        near = (bits + torch.arange(-3, 4)).to(bits.dtype).view(dtype)
        x = torch.cat([near, x[:, 7:].to(dtype)], 1)
        check(native, Case(x, weight, torch.ones(3), None, -1.0))


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)])
def test_empty(native: Native, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    check(
        native,
        Case(torch.ones(m, k), torch.ones(n, k, dtype=torch.int8), torch.ones(n), torch.ones(n), 6.0),
    )


def test_a_row_never_depends_on_its_batch(native: Native) -> None:
    for seed in range(60):
        case = random_case(seed)
        batch = native.linear(*case.arguments)
        for row in range(len(case.x)):
            alone = native.linear(case.x[row : row + 1], *case.arguments[1:])
            assert same_bits(alone, batch[row : row + 1]), f"row {row} of {case}"


@pytest.mark.parametrize("m", [3, 12, 16, 24, 70])
def test_threads_do_not_change_bits(native: Native, m: int) -> None:
    """Also where they share the rows of a block that is alone."""
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(m)
    x = torch.randn(m, 5000, generator=generator) * 3
    columns = torch.tensor([0, 7, 4999], dtype=torch.int32)
    weight, low = (torch.randint(-127, 128, (33, k), generator=generator).to(torch.int8) for k in (5000, 3))
    case = Case(x, weight, torch.rand(33), None, 6.0, columns, low)
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(native.linear(*case.arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(r, results[0]) for r in results[1:])


def test_strides_and_leading_dimensions(native: Native) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, 3, 40, generator=generator).transpose(0, 2)
    weight = torch.randint(-127, 128, (40, 12), generator=generator).to(torch.int8).T
    absmax, bias = torch.rand(24, generator=generator)[::2], torch.rand(24, generator=generator)[1::2]
    y = native.linear(x, weight, absmax, bias, 6.0)
    assert y.shape == (3, 2, 5, 12)
    assert same_bits(y, ops.reference_linear(x, weight, absmax, bias, 6.0))
    vector = native.linear(x[0, 0, 0], weight, absmax, bias, 6.0)
    assert same_bits(vector, y[0, 0, 0])


@pytest.mark.parametrize("m", [1, 4, 17, 40])
def test_outliers_that_round_to_one_digit(native: Native, m: int) -> None:
    """Just above the threshold and its neighbours: their row has two digits, all high ones zero."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (33, 70), generator=generator).to(torch.int8)
    x = torch.full((m, 70), 5.99)
    x[:, 3] = 60
    check(native, Case(x, weight, torch.ones(33), None, 6.0))  # high sums, which must not be found again
    x[:, 3] = 6
    check(native, Case(x, weight, torch.ones(33), None, 6.0))
