"""The gradient of the input: every instruction set returns the bits of the reference."""

import pytest
import torch

from llmint8 import ops, reference
from llmint8.backends.gradient import run
from llmint8.backends.native import Native

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ISAS = [name for name, supported in Native().isas.items() if supported]


def layer(n: int, k: int) -> tuple[torch.Tensor, ...]:
    """Codes, absmax, and a second digit for every third column."""
    columns = torch.arange(0, k, 3, dtype=torch.int32)
    low = torch.randint(-128, 128, (n, len(columns)), dtype=torch.int8)
    return torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n), columns, low


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (5, 31, 33), (7, 257, 65), (13, 513, 15), (17, 16, 129), (245, 9, 40)]
)
def test_bits_of_the_reference(isa: str, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    torch.manual_seed(m)
    weight, absmax, *second = layer(n, k)
    absmax[0] = 0  # a zero row
    grad = torch.randn(m, n).to(dtype)
    for digits in ([], second):
        want = reference.input_gradient(grad, weight, absmax, *digits)
        assert torch.equal(run(Native(isa), grad, weight, absmax, *digits), want)


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_depends_on_itself_alone(isa: str) -> None:
    weight, absmax, *_ = layer(300, 70)
    grad = torch.randn(19, 300)
    grad[3, 5] = torch.inf
    grad[11, 0] = torch.nan
    native = Native(isa)
    whole = run(native, grad, weight, absmax)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(run(native, grad, weight, absmax).view(torch.int32), whole.view(torch.int32))
    finally:
        torch.set_num_threads(threads)
    for row in range(19):
        alone = run(native, grad[row : row + 1], weight, absmax)
        assert torch.equal(alone[0].view(torch.int32), whole[row].view(torch.int32))
    finite = [row for row in range(19) if row not in (3, 11)]
    assert whole[finite].isfinite().all()
    assert not whole[[3, 11]].isfinite().all(dim=1).any()


def test_strided_and_empty_gradients() -> None:
    weight, absmax, *_ = layer(24, 17)
    grad = torch.randn(24, 6).T
    assert torch.equal(
        ops.input_gradient(grad, weight, absmax), ops.input_gradient(grad.contiguous(), weight, absmax)
    )
    assert ops.input_gradient(torch.zeros(2, 0, 24), weight, absmax).shape == (2, 0, 17)
    empty = ops.input_gradient(torch.ones(3, 0), weight[:0], absmax[:0])
    assert torch.equal(empty, torch.zeros(3, 17))


def test_close_to_a_product_in_double_precision() -> None:
    weight, absmax, columns, low = layer(200, 90)
    grad = torch.randn(4, 3, 200)
    floats = weight.double()
    floats[:, columns.long()] += low.double() / 256
    want = (grad.double() * (absmax.double() / 127)) @ floats
    got = ops.input_gradient(grad, weight, absmax, columns, low)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
