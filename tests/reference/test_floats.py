"""Float arithmetic in a fixed order: against an oracle that adds one number at a time, and against torch."""

import numpy as np
import pytest
import torch

from llmint8.reference import floats

SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 100)


def oracle_sum(values: list[np.float32]) -> np.float32:
    lanes = [np.float32(0)] * 16
    for i, value in enumerate(values):
        lanes[i % 16] = lanes[i % 16] + value
    lanes = [lanes[i] + lanes[i + 8] for i in range(8)]
    while len(lanes) > 1:
        lanes = [lanes[i] + lanes[i + 1] for i in range(0, len(lanes), 2)]
    return lanes[0]


@pytest.mark.parametrize("size", SIZES)
def test_sums_run_in_lanes_and_a_tree(size: int) -> None:
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(size)) * 1e3
    want = [oracle_sum(list(row)) for row in x.numpy()]
    assert floats.lane_sum(x).tolist() == [float(value) for value in want]


@pytest.mark.parametrize("size", SIZES)
def test_pair_sums_run_in_blocks_of_two_chains(size: int) -> None:
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(size)) * 1e3
    for row, got in zip(x.numpy(), floats.pair_sum(x), strict=True):
        total = np.float32(0)
        for begin in range(0, size, 32):
            chains = [np.float32(0), np.float32(0)]
            for i, value in enumerate(row[begin : begin + 32]):
                chains[i % 2] = chains[i % 2] + value
            total = total + (chains[0] + chains[1])
        assert got == float(total)


def test_only_bfloat16_has_specks() -> None:
    small = [2.0**-50, -(2.0**-51), 2.0**-130, 0.0, float("inf")]
    assert floats.without_specks(torch.tensor(small)).tolist() == small
    cleaned = floats.without_specks(torch.tensor(small, dtype=torch.bfloat16))
    assert cleaned.tolist() == [2.0**-50, 0.0, 0.0, 0.0, float("inf")]


def test_zeros_and_rows_beside_change_no_sum() -> None:
    """So padding is free, and a row of a batch is the row alone."""
    x = torch.randn(5, 37, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (0, 50))
    for total in (floats.lane_sum, floats.pair_sum):
        assert torch.equal(total(padded), total(x))
        assert torch.equal(torch.stack([total(row) for row in x]), total(x))


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = torch.linspace(-87, 88, 200_001)
    want = x.double().exp()
    unit = torch.finfo(torch.float32).eps * want / 2
    assert ((floats.exp(x).double() - want).abs() / unit).max() <= 2


def test_exp_at_the_ends() -> None:
    infinity = float("inf")
    x = torch.tensor([-infinity, -87.1, 0.0, -0.0, 89.0, infinity, float("nan")])
    largest = floats.exp(torch.tensor([88.0])).item()
    assert floats.exp(x)[:-1].tolist() == [0.0, 0.0, 1.0, 1.0, largest, largest]
    assert floats.exp(x)[-1].isnan()


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_activations(name: str, meaning: object) -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([-1e4, 1e4, 0.0])])
    want = meaning(x.double())
    error = (floats.ACTIVATIONS[name](x).double() - want).abs()
    assert (error / want.abs().clamp(min=1)).max() < 4e-7
    assert floats.ACTIVATIONS[name](torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rms_norm_rounds_where_transformers_does(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    generator = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(100, eps=1e-5).to(dtype)
    norm.weight.data = torch.randn(100, generator=generator).to(dtype)
    x = (torch.randn(50, 100, generator=generator) * 3).to(dtype)
    got, want = floats.rms_norm(x, norm.weight.data, 1e-5), norm(x)
    torch.testing.assert_close(got, want, rtol=3 * torch.finfo(dtype).eps, atol=0)
    assert (got == want).float().mean() > 0.7
