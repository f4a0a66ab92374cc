"""The optimizers' step on GPUs: weights, states, scales and norms have the bits of the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from agreement.test_optimizer import arguments, bits
from backends.triton.conftest import DEVICE
from llmint8 import reference
from llmint8.errors import InputError
from llmint8.reference.blockwise import dynamic_code_book, zero_code
from llmint8.reference.optimizers import RULES, Common, Rule

SIZES = (1, 255, 256, 257, 1500)


def moved(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.clone().to(DEVICE) for t in tensors]


def same(own: list[Tensor | None], want: list[Tensor | None]) -> bool:
    pairs = [(a, b) for a, b in zip(own, want, strict=True) if b is not None]
    return all(torch.equal(bits(a.cpu()), bits(b)) for a, b in pairs)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_step_and_norms(rule: Rule) -> None:
    from llmint8.backends.triton.optimizer import norms, step

    for seed, (size, eight, wide) in enumerate(itertools.product(SIZES, (True, False), (True, False))):
        _, p, g, states, absmax, *rest = arguments(rule, size, seed, eight, wide)
        (own_p, own_g), own_states, own_absmax = moved([p, g]), moved(states), moved(absmax)
        measured = norms(rule, own_p, own_g, own_states, own_absmax, *rest)
        want = reference.optimizer_norms(rule, p, g, states, absmax, *rest)
        assert torch.equal(bits(measured.cpu()), bits(want)), (size, p.dtype)
        assert same([own_p, *own_states, *own_absmax], [p, *states, *absmax]), "measuring changed something"
        step(rule, own_p, own_g, own_states, own_absmax, *rest)
        reference.optimizer_step(rule, p, g, states, absmax, *rest)
        assert same([own_p, *own_states, *own_absmax], [p, *states, *absmax]), (size, p.dtype)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_nothing_comes_from_behind_the_end(rule: Rule) -> None:
    """Without eps, what fills the last block divides zero by zero."""
    from llmint8.backends.triton.optimizer import norms, step

    _, p, _, states, absmax, common, constants = arguments(rule, 300, 0, True, False)
    g = torch.rand(300) + 1
    constants = [0.0 if value < 1e-6 else value for value in constants]
    (own_p, own_g), own_states, own_absmax = moved([p, g]), moved(states), moved(absmax)
    assert not norms(rule, own_p, own_g, own_states, own_absmax, common, constants).isnan().any()
    step(rule, own_p, own_g, own_states, own_absmax, common, constants)
    reference.optimizer_step(rule, p, g, states, absmax, common, constants)
    assert not any(scale.isnan().any() for scale in absmax)
    assert same([*own_states, *own_absmax], [*states, *absmax])


@pytest.mark.parametrize("signed", [True, False])
def test_codes_around_every_midpoint(signed: bool) -> None:
    """The cells find the code that a search finds, at each midpoint and on both sides of it."""
    from llmint8.backends.triton.kernels import code_book

    magnitudes = dynamic_code_book(signed)[zero_code(signed) :]
    middle = (magnitudes[:-1] + magnitudes[1:]) / 2
    values = torch.cat(
        [magnitudes, middle, middle.nextafter(torch.ones(1)), middle.nextafter(-torch.ones(1))]
    )
    found = values.view(torch.int32)
    below_first = code_book.BELOW_FIRST_CELL.value
    entry = code_book.cells(signed)[((found >> 16).clamp(min=below_first) - below_first).long()]
    k = (entry + (found & 0xFFFF)) >> 16
    assert torch.equal(k.long(), torch.bucketize(values, middle))


def test_shapes_that_do_not_fit_are_refused() -> None:
    from llmint8.backends.triton.optimizer import step

    p, state = torch.zeros(300, device=DEVICE), torch.zeros(299, device=DEVICE)
    with pytest.raises(InputError, match="300 elements"):
        step(RULES[2], p, p.clone(), [state], [None], Common(0.1), [0.9, 0.1, 0.99, 0.01])
