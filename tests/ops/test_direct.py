"""The short way to a kernel gives what the operator gives, and steps aside for whatever watches operators."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agreement.cases import random_case, same_bits
from llmint8 import InputError, ops
from llmint8.ops.direct import LINEAR_KERNELS

CASE = random_case(5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the calls that go past the dispatcher."""
    count: list[int] = []
    kernel = LINEAR_KERNELS["cpu"]

    def counted(*arguments: object) -> Tensor:
        count.append(1)
        return kernel(*arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(LINEAR_KERNELS, "cpu", counted)
    return count


def test_the_bits_of_the_operator_in_one_call(calls: list[int]) -> None:
    for seed in range(40):
        case = random_case(seed)
        assert same_bits(ops.call_linear(*case.arguments), ops.linear(*case.arguments))
    assert len(calls) == 40


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_a_parameter_may_require_one(calls: list[int], mode: type) -> None:
    x, weight, absmax, _, threshold, *_ = CASE.arguments
    bias = torch.nn.Parameter(torch.ones(len(absmax)))
    with mode():
        ops.call_linear(x, weight, absmax, bias, threshold)
    assert len(calls) == 1


def test_autograd_sees_the_operator(calls: list[int]) -> None:
    x, *rest = CASE.arguments
    x = x.float().requires_grad_()
    assert ops.call_linear(x, *rest).requires_grad
    assert not calls


def test_modes_see_the_operator(calls: list[int]) -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        ops.call_linear(*CASE.arguments)
    assert ops.linear in seen
    assert not calls


def test_subclasses_see_the_operator(calls: list[int]) -> None:
    class Wrapped(Tensor):
        pass

    x, *rest = CASE.arguments
    y = ops.call_linear(x.as_subclass(Wrapped), *rest)
    assert same_bits(y.as_subclass(Tensor), ops.linear(*CASE.arguments))
    assert not calls


def test_other_devices_take_the_operator(calls: list[int]) -> None:
    x, weight, absmax, _, threshold, *_ = CASE.arguments
    y = ops.call_linear(x.to("meta"), weight.to("meta"), absmax.to("meta"), None, threshold)
    assert y.is_meta
    assert y.shape == (len(x), len(weight))
    assert not calls


def test_tracing_and_compiling_see_the_operator(calls: list[int]) -> None:
    x, *rest = CASE.arguments
    traced = torch.jit.trace(lambda x: ops.call_linear(x, *rest), (x,), check_trace=False)
    compiled = torch.compile(lambda x: ops.call_linear(x, *rest), fullgraph=True, backend="aot_eager")
    want = ops.linear(x + 1, *rest)
    assert same_bits(traced(x + 1), want)
    assert same_bits(compiled(x + 1), want)
    assert not calls


def test_wrong_arguments_are_the_same_error() -> None:
    with pytest.raises(InputError, match="does not fit the weight"):
        ops.call_linear(CASE.x[:, :-1], *CASE.arguments[1:])
