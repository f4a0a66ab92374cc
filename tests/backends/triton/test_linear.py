"""GPU kernels return the bits of the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from agreement.cases import DTYPES, THRESHOLDS, Case, low_digit, random_case, same_bits
from backends.triton.conftest import DEVICE
from llmint8 import ops, reference
from llmint8.backends.triton import tiles


def moved(case: Case) -> tuple:
    return tuple(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in case.arguments)


def check(case: Case) -> None:
    from llmint8.backends.triton.linear import linear, quantize_rows

    y = linear(*moved(case))
    assert same_bits(y.cpu(), ops.reference_linear(*case.arguments)), f"linear: {case}"
    if case.x.dim() == 2:
        q, row_scale = quantize_rows(case.x.to(DEVICE), case.threshold)
        want_q, want_scale = reference.quantize_rows(case.x, case.threshold)
        assert torch.equal(q.cpu(), want_q), f"quantize_rows: {case}"
        assert same_bits(row_scale.cpu(), want_scale), f"quantize_rows: {case}"


@pytest.mark.parametrize("seed", range(40))
def test_random_cases(small_tiles: None, seed: int) -> None:
    check(random_case(seed, largest=64))


@pytest.mark.parametrize("m", [1, 5, 16, 17, 130, 300])
def test_the_tiles_that_are_used(m: int) -> None:
    generator = torch.Generator().manual_seed(m)
    x = torch.randn(m, 300, generator=generator).bfloat16()
    x[:, 7] *= 30
    weight = torch.randint(-127, 128, (150, 300), generator=generator).to(torch.int8)
    columns, low = low_digit(300, 150, 20, generator)
    absmax = torch.rand(150, generator=generator)
    check(Case(x, weight, absmax, absmax.half(), 6.0, columns, low))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("k", [1, 17, 65])
def test_odd_sizes(small_tiles: None, dtype: torch.dtype, threshold: float, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    for m, n in ((1, 33), (19, 17)):
        x = torch.randn(m, k, generator=generator).to(dtype)
        x[:, :: max(k // 5, 1)] *= 30
        weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
        absmax = torch.rand(n, generator=generator)
        check(Case(x, weight, absmax, absmax.to(dtype), threshold))


@pytest.mark.parametrize("m", [1, 17])
def test_largest_sums_are_exact(m: int) -> None:
    k = 131_072
    x = torch.full((m, k), 500.0)  # every element an outlier
    x[:, ::2] = 499.0
    x[0, 5] = 1.0
    weight = torch.full((3, k), 127, dtype=torch.int8)
    weight[1] = -127
    weight[2, ::2] = -128
    check(Case(x, weight, torch.tensor([1.0, 2.0, 3.0]), None, 6.0))


@pytest.mark.parametrize("columns", [0, 1, 40, 70, 100])
def test_columns_of_outliers(small_tiles: None, columns: int) -> None:
    """Of many rows those with outliers are gathered, or where they are more than half all are multiplied."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(40, 100, generator=generator).clamp(-4, 4)
    chosen = torch.randperm(100, generator=generator)[:columns]
    x[torch.randint(0, 40, (columns,), generator=generator), chosen] = 50.0
    weight = torch.randint(-127, 128, (70, 100), generator=generator).to(torch.int8)
    assert tiles.are_many(40, 70)
    check(Case(x, weight, torch.rand(70, generator=generator), None, 6.0))


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 0)])
def test_empty(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    check(Case(torch.ones(m, k), torch.ones(n, k, dtype=torch.int8), torch.ones(n), torch.ones(n), 6.0))


def test_rows_alone_and_in_a_batch(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row takes the one kernel, the batch the other."""
    from llmint8.backends.triton.linear import linear

    monkeypatch.setattr(tiles, "FEW_ROWS", 1)
    for seed in range(6):
        case = random_case(seed, largest=80)
        batch = linear(*moved(case))
        for row in range(0, len(case.x), 3):
            alone = linear(*moved(dataclasses.replace(case, x=case.x[row : row + 1])))
            assert same_bits(alone.cpu(), batch[row : row + 1].cpu()), f"row {row} of {case}"


def test_columns_that_do_not_exist_add_nothing(small_tiles: None) -> None:
    """Memory outside of the tensors is not read; the reference, which may look, refuses them."""
    from llmint8.backends.triton.linear import linear

    generator = torch.Generator().manual_seed(0)
    for m in (3, 20):
        x = torch.randn(m, 40, generator=generator)
        weight = torch.randint(-127, 128, (20, 40), generator=generator).to(torch.int8)
        low = torch.randint(-127, 128, (20, 3), generator=generator).to(torch.int8)
        absmax = torch.rand(20, generator=generator)
        columns = torch.tensor([-5, 7, 40], dtype=torch.int32)
        y = linear(*moved(Case(x, weight, absmax, None, 6.0, columns, low)))
        want = ops.reference_linear(x, weight, absmax, None, 6.0, columns[1:2], low[:, 1:2])
        assert same_bits(y.cpu(), want)


def test_strides_and_leading_dimensions(small_tiles: None) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, 3, 40, generator=generator).transpose(0, 2)
    weight = torch.randint(-127, 128, (40, 24), generator=generator).to(torch.int8).T
    absmax, bias = torch.rand(48, generator=generator)[::2], torch.rand(48, generator=generator)[1::2]
    check(Case(x, weight, absmax, bias, 6.0))
    check(Case(x[0, 0, 0], weight, absmax, bias, 6.0))
