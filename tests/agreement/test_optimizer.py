"""Every kernel's step == the reference's, bit for bit: weights, states, scales and norms."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from agreement.cases import DTYPES
from llmint8 import reference
from llmint8.backends.native import Native
from llmint8.backends.optimizer import run
from llmint8.reference.blockwise import block_count
from llmint8.reference.optimizers import RULES, Common, Rule

SIZES = (1, 7, 8, 15, 17, 255, 256, 257, 511, 512, 1000, 4096, 9001)
#: Plausible constants of each rule, in its own order.
CONSTANTS = {
    "Adam": [0.9, 0.1, 0.999, 0.001, 1.7, 1e-8, 2.5],
    "AdEMAMix": [0.9, 0.1, 0.999, 0.001, 1.7, 1e-8, 2.5, 0.9999, 0.0001, 5.0],
    "Lion": [0.9, 0.1, 0.99, 0.01],
    "SGD with momentum": [0.9, 0.8, 1.0, 0.9],
    "RMSprop": [0.99, 0.01, 1e-8],
    "RMSprop with momentum": [0.99, 0.01, 1e-8, 0.9],
    "Adagrad": [1e-10],
}


def bits(x: Tensor) -> Tensor:
    """Bits as integers; every NaN is one NaN, since its payload is not part of the meaning."""
    if not x.is_floating_point():
        return x
    canonical = torch.where(x.isnan(), torch.full_like(x, float("nan")), x)
    return canonical.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])


def distort(g: Tensor, choose: random.Random) -> None:
    """Make blocks of a gradient zero, tiny, huge, not finite, or full of ties."""
    for start in range(0, g.numel(), 256):
        block = g[start : start + 256]
        match choose.randint(0, 9):
            case 0:
                block.zero_()
            case 1:
                block *= torch.finfo(g.dtype).tiny
            case 2:
                block[choose.randrange(block.numel())] = float("nan")
            case 3:
                block[choose.randrange(block.numel())] = float("inf")
            case 4:
                block *= 1e-18
            case 5:
                block.copy_(block.sign())


def arguments(rule: Rule, size: int, seed: int, eight_bits: bool, wide: bool):
    generator = torch.Generator().manual_seed(seed)
    choose = random.Random(seed)
    dtype = choose.choice(DTYPES)
    p = torch.randn(size, generator=generator).to(dtype)
    g = (torch.randn(size, generator=generator) * 10 ** choose.uniform(-6, 2)).to(
        torch.float32 if wide else dtype
    )
    distort(g, choose)
    states, absmax = [], []
    for signed in rule.signed:
        values = torch.randn(size, generator=generator) * 10 ** choose.uniform(-8, 2)
        values = values if signed else values**2
        codes, scale = reference.quantize_blockwise(values, signed)
        states.append(codes if eight_bits else values)
        absmax.append(scale if eight_bits else None)
    zero_or = lambda value: choose.choice((0.0, value))  # noqa: E731
    common = Common(choose.choice((1e-3, 0.1)), choose.choice((1.0, 0.99)), zero_or(0.01), zero_or(0.02))
    return rule, p, g, states, absmax, common, CONSTANTS[rule.name]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_step_and_norms(native: Native, rule: Rule) -> None:
    cases = itertools.product(SIZES, (True, False), (True, False))
    for seed, (size, eight_bits, wide) in enumerate(cases):
        _, p, g, states, absmax, *rest = arguments(rule, size, seed, eight_bits, wide)
        before = [t.clone() for t in (p, g, *states)]
        norms = torch.empty(block_count(size), 2, dtype=torch.float64)
        run(native, rule, p, g, states, absmax, *rest, norms)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(before, (p, g, *states), strict=True))
        assert torch.equal(bits(norms), bits(reference.optimizer_norms(rule, p, g, states, absmax, *rest)))
        own_p, own_states = p.clone(), [s.clone() for s in states]
        own_absmax = [None if a is None else a.clone() for a in absmax]
        run(native, rule, own_p, g, own_states, own_absmax, *rest, None)
        reference.optimizer_step(rule, p, g, states, absmax, *rest)
        assert torch.equal(bits(own_p), bits(p)), (size, p.dtype)
        for name, own, want in zip(rule.signed, own_states, states, strict=True):
            assert torch.equal(bits(own), bits(want)), (name, size, p.dtype)
        if eight_bits:
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(own_absmax, absmax, strict=True))


def test_codes_around_every_midpoint(native: Native) -> None:
    """The table without a search finds the nearest code: at each midpoint and on both sides of it."""
    for rule, signed in ((RULES[3], True), (RULES[6], False)):
        book = reference.dynamic_code_book(signed)
        middle = (book[:-1] + book[1:]) / 2
        values = torch.cat([book, middle, middle.nextafter(torch.ones(1)), middle.nextafter(-torch.ones(1))])
        values = values[(values >= 0) | torch.tensor(signed)]
        blocks = values.split(255)
        state = torch.cat([torch.cat([block, torch.ones(256 - len(block))]) for block in blocks])
        codes, absmax = reference.quantize_blockwise(state, signed)
        own = torch.zeros(len(state), dtype=torch.uint8) + (127 if signed else 0)
        own_absmax = torch.zeros(len(blocks))
        # From a zero state, a gradient becomes the state: itself, or its square.
        g = state if signed else state.sqrt()
        constants = [0.0, 1.0, 0.0, 1.0] if signed else [1.0]
        if not signed:
            codes, absmax = reference.quantize_blockwise(g * g, signed)
        run(native, rule, torch.zeros_like(state), g, [own], [own_absmax], Common(0.0), constants, None)
        assert torch.equal(own, codes)
        assert torch.equal(own_absmax, absmax)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_nothing_comes_from_behind_the_end(native: Native, rule: Rule) -> None:
    """Without eps, what fills the last block divides zero by zero."""
    _, p, g, states, absmax, common, constants = arguments(rule, 300, 0, True, False)
    g = torch.rand(300) + 1
    constants = [0.0 if value < 1e-6 else value for value in constants]
    own = [p.clone(), [s.clone() for s in states], [a.clone() for a in absmax]]
    run(native, rule, own[0], g, own[1], own[2], common, constants, None)
    reference.optimizer_step(rule, p, g, states, absmax, common, constants)
    assert not any(scale.isnan().any() for scale in absmax)
    assert all(map(torch.equal, own[1] + own[2], states + absmax))


def test_threads_change_nothing(native: Native) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            _, p, g, states, absmax, *rest = arguments(RULES[0], 50_000, 3, True, False)
            run(native, RULES[0], p, g, states, absmax, *rest, None)
            results.append((p, *states, *absmax))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results[0], other, strict=True))


def test_every_code_has_its_value(native: Native) -> None:
    """From zero weights, a step of 1 along the state is the state's value, or follows from it."""
    for rule, constants in ((RULES[3], [1.0, 0.0, 0.0, 1.0]), (RULES[6], [1e-30])):
        p, g = torch.zeros(256), torch.full((256,), 2.0**-60)
        own = [p.clone(), torch.arange(256).to(torch.uint8), torch.full((1,), 3.7)]
        want = [t.clone() for t in own]
        run(native, rule, own[0], g, [own[1]], [own[2]], Common(1.0), constants, None)
        reference.optimizer_step(rule, want[0], g, [want[1]], [want[2]], Common(1.0), constants)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(own, want, strict=True))
        assert own[0].unique().numel() > 250
