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


def test_off_the_cpu_it_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(8, device="meta"))
    weight.grad = torch.zeros(8, device="meta")
    with pytest.raises(ConfigError, match="meta"):
        optim.PagedAdamW8bit([weight]).step()
