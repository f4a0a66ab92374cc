"""The way from an operation to a GPU's kernel, and around it where the kernels do not run."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from agreement.cases import random_case, same_bits
from agreement.test_optimizer import arguments
from backends.triton.test_linear import moved
from backends.triton.test_optimizer import moved as on_device
from llmint8 import ops
from llmint8.backends import triton
from llmint8.ops.direct import LINEAR_KERNELS
from llmint8.ops.optimizer import OPTIMIZER_KERNELS
from llmint8.reference.optimizers import RULES

CASE = random_case(5, largest=40)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which functions of the kernels are called; each runs, wherever the tensors are."""
    called = []
    real = triton._function
    monkeypatch.setattr(triton, "_current", lambda device: nullcontext())
    monkeypatch.setattr(triton, "_function", lambda *names: called.append(names) or real(*names))
    return called


@pytest.mark.parametrize("usable", [True, False])
def test_kernels_or_the_reference(
    functions: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    monkeypatch.setattr(triton, "_usable", lambda index: usable)
    y = LINEAR_KERNELS["cuda"](*moved(CASE))
    assert same_bits(y.cpu(), ops.reference_linear(*CASE.arguments))
    rule, p, g, states, absmax, *rest = arguments(RULES[2], 300, 1, True, False)
    (p, g), states, absmax = on_device([p, g]), on_device(states), on_device(absmax)
    step = rule, p, g, states, absmax, *rest
    assert OPTIMIZER_KERNELS["cuda"].norms(*step).shape == (2, 2)
    before = p.clone()
    OPTIMIZER_KERNELS["cuda"].step(*step)
    assert not same_bits(p, before)
    assert functions == ([("linear", "linear"), ("optimizer", "norms"), ("optimizer", "step")] * usable)
