"""Rows through the layers of their experts: the bits and gradients of `linear`, one layer at a time."""

import pytest
import torch
from torch import Tensor

from agreement.cases import DTYPES, same_bits
from llmint8 import InputError, ops

EXPERTS, ROWS, K, N = 4, 9, 24, 7
#: Unsorted, one without rows (2), some rows without an expert (4 and 6).
CHOSEN = torch.tensor([3, 0, 4, 0, 1, 3, 6, 1, 0])


def arguments(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, K, generator=generator).to(dtype)
    x[::2, 3] *= 20
    weight = torch.randint(-127, 128, (EXPERTS, N, K), generator=generator).to(torch.int8)
    absmax = torch.rand(EXPERTS, N, generator=generator)
    return x, CHOSEN, weight, absmax, torch.randn(EXPERTS, N, generator=generator) if bias else None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 6.0, -1.0])
def test_each_row_has_the_bits_of_its_layer(dtype: torch.dtype, bias: bool, threshold: float) -> None:
    x, chosen, weight, absmax, biases = arguments(dtype, bias)
    y = ops.experts_linear(x, chosen, weight, absmax, biases, threshold)
    for row, expert in enumerate(chosen.tolist()):
        if expert >= EXPERTS:
            assert same_bits(y[row], torch.zeros(N, dtype=dtype))
            continue
        own = None if biases is None else biases[expert]
        assert same_bits(y[row], ops.linear(x[row], weight[expert], absmax[expert], own, threshold))


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias: bool) -> None:
    x, *rest = arguments(bias=bias)
    torch.library.opcheck(ops.experts_linear, (x, *rest, 6.0))
    torch.library.opcheck(ops.experts_linear, (x.requires_grad_(), *rest, 6.0))


def test_gradients_are_those_of_each_layer() -> None:
    x, chosen, weight, absmax, biases = arguments()
    upstream = torch.randn(ROWS, N, generator=torch.Generator().manual_seed(1))
    grads = []
    for together in (True, False):
        given, shifts = x.clone().requires_grad_(), biases.clone().requires_grad_()
        if together:
            y = ops.experts_linear(given, chosen, weight, absmax, shifts, 6.0)
            y.backward(upstream)
        else:
            for expert in range(EXPERTS):
                rows = torch.where(chosen == expert)[0]
                y = ops.linear(given[rows], weight[expert], absmax[expert], shifts[expert], 6.0)
                y.backward(upstream[rows])
        grads.append((given.grad, shifts.grad))
    assert same_bits(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])  # summed in another order
    assert not grads[0][0][chosen >= EXPERTS].any()


def test_a_training_step_compiles_in_one_graph() -> None:
    x, *rest = arguments()

    def loss(x: Tensor) -> Tensor:
        return ops.experts_linear(x, *rest, 6.0).square().sum()

    grads = []
    for run in (loss, torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")):
        given = x.clone().requires_grad_()
        run(given).backward()
        grads.append(given.grad)
    assert same_bits(grads[0], grads[1])


def test_no_rows() -> None:
    x, chosen, *rest = arguments()
    assert ops.experts_linear(x[:0], chosen[:0], *rest, 6.0).shape == (0, N)


def test_what_does_not_fit_is_named() -> None:
    x, chosen, weight, absmax, biases = arguments()
    with pytest.raises(InputError, match=r"weight must be int8 \[E, N, K\]"):
        ops.experts_linear(x, chosen, weight[0], absmax, biases, 6.0)
    with pytest.raises(InputError, match="flatten them first"):
        ops.experts_linear(x, chosen[:-1], weight, absmax, biases, 6.0)
