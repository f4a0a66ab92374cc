"""State in files: the same bits, and few resident bytes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from llmint8 import optim
from llmint8.errors import ConfigError
from llmint8.optim import pages
from optim.problem import PAGED, PAIRS, go_on, same, train


@pytest.mark.parametrize("name", PAGED)
@pytest.mark.parametrize("bits", [32, 8])
def test_the_same_bits(name: str, bits: int, tmp_path: Path) -> None:
    arguments = PAIRS[name][3]
    want, _, _ = train(lambda p: PAIRS[name][bits == 8](p, **arguments), 8)
    paged = PAGED[name][bits == 8]

    def make(parameters: object) -> torch.optim.Optimizer:
        optimizer = paged(parameters, **arguments)
        optimizer.pages.resident_bytes = 4096
        return optimizer

    model, optimizer, _ = train(make, 4)
    twin = copy.deepcopy(model)
    loaded = paged(twin.parameters(), **arguments)
    loaded.load_state_dict(optimizer.state_dict())
    go_on(model, optimizer, 4)
    go_on(twin, loaded, 4)
    assert same(model, want)
    assert same(twin, want)


def resident(tensor: torch.Tensor) -> int:
    """Resident bytes of the mapping that holds a tensor."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    inside = False
    for line in lines:
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= tensor.data_ptr() < end
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_are_given_back() -> None:
    weight = nn.Parameter(torch.randn(1 << 20))
    weight.grad = torch.randn(1 << 20)
    optimizer = optim.PagedAdamW8bit([weight])
    optimizer.pages.resident_bytes = 256 << 10
    optimizer.step()
    for key in ("state1", "state2"):
        state = optimizer.state[weight][key]
        assert resident(state) == 0
        assert state.unique().numel() > 100
        assert resident(state) > 0
    optimizer.step()
    assert sum(resident(optimizer.state[weight][key]) for key in ("state1", "state2")) == 0


@pytest.mark.parametrize("bits", [32, 8])
def test_pieces_that_are_copied_to_the_parameter_come_back(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens to parameters on a GPU, with a copy in the place of the GPU."""
    moved: list[int] = []

    def move(part: torch.Tensor, device: torch.device) -> torch.Tensor:
        moved.append(part.nbytes)
        return part.clone()

    arguments = PAIRS["AdamW"][3]
    want, _, _ = train(lambda p: PAIRS["AdamW"][bits == 8](p, **arguments), 4)
    monkeypatch.setattr(pages, "_moved", move)

    def make(parameters: object) -> torch.optim.Optimizer:
        optimizer = PAGED["AdamW"][bits == 8](parameters, **arguments)
        optimizer.pages.resident_bytes = 4096
        return optimizer

    model, _, _ = train(make, 4)
    assert same(model, want)
    assert max(moved) <= 4096
    assert len(moved) > 2 * 4 * len(list(model.parameters()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("make", [optim.PagedAdamW8bit, optim.PagedAdamW])
def test_on_a_gpu_the_state_is_in_memory_of_the_host(make: type) -> None:
    start, grads = torch.randn(100_000), torch.randn(4, 100_000)
    ends = []
    for device in ("cpu", "cuda"):
        weight = nn.Parameter(start.clone().to(device))
        optimizer = make([weight])
        optimizer.pages.resident_bytes = 64 << 10
        for grad in grads[:2]:
            weight.grad = grad.to(device)
            optimizer.step()
        loaded = make([weight])
        loaded.load_state_dict(optimizer.state_dict())
        for grad in grads[2:]:
            weight.grad = grad.to(device)
            loaded.step()
        state = loaded.state[weight]["state1"]
        assert state.is_cpu
        assert state.is_pinned() == (device == "cuda")
        ends += [weight.detach().cpu(), state.clone()]
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[3])


def test_off_cpus_and_gpus_it_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(8, device="meta"))
    weight.grad = torch.zeros(8, device="meta")
    with pytest.raises(ConfigError, match="meta"):
        optim.PagedAdamW8bit([weight]).step()
