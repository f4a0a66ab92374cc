"""Every optimizer against torch's own, its twin, and the contract of torch.optim.Optimizer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from llmint8 import optim
from llmint8.errors import ConfigError, InputError
from optim.problem import PAIRS, go_on, loss_of, network, same, train

NAMES = pytest.mark.parametrize("name", PAIRS)


@NAMES
def test_32_bits_are_torchs_optimizer(name: str) -> None:
    own, _, torchs, arguments = PAIRS[name]
    if torchs is None:
        pytest.skip("torch has no such optimizer")
    model, _, _ = train(lambda p: own(p, **arguments))
    want, _, _ = train(lambda p: torchs(p, **arguments))
    for a, b in zip(model.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_8_bits_follow_32(name: str, dtype: torch.dtype) -> None:
    own, eight, _, arguments = PAIRS[name]
    _, _, before = train(lambda p: own(p, **arguments), 0, dtype=dtype)
    _, _, want = train(lambda p: own(p, **arguments), dtype=dtype)
    _, optimizer, got = train(lambda p: eight(p, **arguments), dtype=dtype)
    assert want < before
    assert abs(got - want) < 0.1 * (before - want)
    kinds = [state["state1"].dtype for state in optimizer.state.values()]
    assert kinds == [torch.uint8, torch.float32, torch.float32, torch.float32]


@NAMES
def test_saved_and_loaded_it_goes_on_with_the_same_bits(name: str, tmp_path: Any) -> None:
    _, eight, _, arguments = PAIRS[name]
    model, optimizer, _ = train(lambda p: eight(p, **arguments))
    twin = copy.deepcopy(model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = eight(twin.parameters(), **{**arguments, "lr": 0.5})
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    go_on(model, optimizer, 3)
    go_on(twin, other, 3)
    assert same(model, twin)


def test_loading_copies() -> None:
    _, optimizer, _ = train(optim.AdamW8bit)
    model = network()
    other = optim.AdamW8bit(model.parameters())
    other.load_state_dict(optimizer.state_dict())
    before = [s["state1"].clone() for s in optimizer.state.values()]
    go_on(model, other, 1)
    assert all(torch.equal(b, s["state1"]) for b, s in zip(before, optimizer.state.values(), strict=True))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_go_on(way: str) -> None:
    model, optimizer, _ = train(optim.AdamW8bit)
    optimizer.override(model[2], lr=1e-4)
    copied, its = (copy.deepcopy if way == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x)))(
        (model, optimizer)
    )
    go_on(model, optimizer, 2)
    go_on(copied, its, 2)
    assert same(model, copied)


def test_bytes_of_state() -> None:
    weight = nn.Parameter(torch.randn(512, 512))
    weight.grad = torch.randn(512, 512)
    optimizer = optim.AdamW8bit([weight])
    optimizer.step()
    state = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor)]
    assert sum(v.nbytes for v in state) / weight.numel() == 2 * (1 + 4 / 256)


def test_options_of_groups_and_overrides() -> None:
    model = network()
    optimizer = optim.AdamW8bit(
        [{"params": model[0].parameters(), "optim_bits": 32}, {"params": model[2].parameters(), "lr": 0.0}],
        min_8bit_size=2048,
    )
    optimizer.override(model[2].bias, lr=1.0)
    before = copy.deepcopy(model)
    go_on(model, optimizer, 1)
    assert optimizer.state[model[0].weight]["state1"].dtype == torch.float32
    assert optimizer.state[model[2].weight]["state1"].dtype == torch.uint8
    assert torch.equal(model[2].weight, before[2].weight)
    assert not torch.equal(model[2].bias, before[2].bias)


def test_stable_embedding_keeps_32_bits() -> None:
    embedding = copy.deepcopy(optim.StableEmbedding(200, 64, padding_idx=3))
    assert (embedding.weight[3] == 0).all()
    rows = embedding(torch.tensor([[1, 2], [5, 6]]))
    torch.testing.assert_close(rows.mean(-1), torch.zeros(2, 2), atol=1e-6, rtol=0)
    (rows**3).sum().backward()
    optimizer = optim.AdamW8bit(embedding.parameters())
    optimizer.step()
    assert optimizer.state[embedding.weight]["state1"].dtype == torch.float32


def test_closure_scheduler_and_clipping() -> None:
    model = network()
    optimizer = optim.Lion8bit(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return loss

    first = optimizer.step(closure)
    scheduler.step()
    assert optimizer.step(closure) < first
    scheduler.step()
    before = copy.deepcopy(model)
    optimizer.step(closure)
    assert same(model, before)


def test_columns_in_memory_order_and_no_gradient() -> None:
    """A transposed parameter has the result of a contiguous one; one without gradient is left alone."""
    plain = nn.Parameter(torch.randn(70, 80, generator=torch.Generator().manual_seed(0)))
    turned = nn.Parameter(plain.detach().T.contiguous().T)
    idle = nn.Parameter(torch.ones(5000))
    assert not turned.is_contiguous()
    for seed in range(3):
        plain.grad = torch.randn(70, 80, generator=torch.Generator().manual_seed(seed))
        turned.grad = plain.grad.T.contiguous().T
        if seed == 0:
            one, two = optim.AdamW8bit([plain, idle]), optim.AdamW8bit([turned])
        one.step()
        two.step()
    assert torch.equal(plain, turned)
    assert (idle == 1).all()


def test_zero_weights_train_under_lamb() -> None:
    weight = nn.Parameter(torch.zeros(100, 100))
    weight.grad = torch.ones(100, 100)
    optim.LAMB8bit([weight]).step()
    assert (weight < 0).all()


def test_lamb_and_lars_bound_the_update() -> None:
    for optimizer_class, bound in ((optim.LAMB, 0.5), (optim.LARS8bit, 0.02)):
        weight = nn.Parameter(torch.full((80, 80), 0.01))
        before = weight.detach().clone()
        weight.grad = torch.ones(80, 80)
        optimizer_class([weight], lr=1.0, max_unorm=bound).step()
        torch.testing.assert_close((weight - before).norm(), bound * before.norm())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: optim.AdamW8bit(p, lr=-1), "lr"),
        (lambda p: optim.AdamW8bit(p, betas=(0.9, 1.0)), "betas"),
        (lambda p: optim.AdamW(p, optim_bits=4), "optim_bits"),
        (lambda p: optim.SGD8bit(p, lr=1, momentum=0), r"torch.optim.SGD"),
        (lambda p: optim.SGD8bit(p, lr=1, nesterov=True, dampening=0.1), "dampening"),
        (lambda p: optim.AdEMAMix8bit(p, betas=(0.9, 0.99)), "three"),
        (lambda p: optim.RMSprop8bit(p, alpha=1.0), "alpha"),
        (lambda p: optim.AdamW8bit(p).override(network(), rate=3), "rate"),
        (lambda p: optim.AdamW8bit(p).override(network(), lr=-3.0), "lr"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(network().parameters())


def test_what_cannot_be_updated_is_refused() -> None:
    embedding = nn.Embedding(10, 600, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        optim.AdamW8bit(embedding.parameters()).step()
    wide = nn.Parameter(torch.ones(3, dtype=torch.float64))
    wide.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(InputError, match="float64"):
        optim.AdamW8bit([wide]).step()
