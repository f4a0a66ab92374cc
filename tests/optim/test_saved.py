"""States of bitsandbytes are read, and what cannot be right is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmint8 import optim
from llmint8.errors import CheckpointError
from optim.problem import network, train

SAVED = torch.load(Path(__file__).with_name("bitsandbytes_state.pt"), weights_only=True)


def test_bitsandbytes_state_goes_on() -> None:
    weight = nn.Parameter(SAVED["weight"].clone())
    optimizer = optim.AdamW8bit([weight])
    optimizer.load_state_dict(SAVED["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 1e-2
    quantised = SAVED["optimizer"]["state"][0]["__bnb_optimizer_quant_state__"]
    state = optimizer.state_dict()["state"][0]
    assert state["step"] == 5
    assert quantised.keys() <= state.keys()
    assert all(torch.equal(state[key], value) for key, value in quantised.items())
    weight.grad = SAVED["gradient"]
    optimizer.step()
    # bitsandbytes rounds in another order: at most one unit of bfloat16 apart, and mostly none.
    want = SAVED["next_weight"]
    torch.testing.assert_close(weight.detach(), want, rtol=2**-7, atol=1e-5)
    assert (weight == want).float().mean() > 0.98


def broken(change: Any) -> dict[str, Any]:
    _, optimizer, _ = train(optim.AdamW8bit, 1)
    state_dict = optimizer.state_dict()
    change(state_dict["state"][0])
    return state_dict


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("state2"), "state2 of parameter 0"),
        (lambda s: s.update(state1=s["state1"][:5]), "elements"),
        (lambda s: s.update(state1=s["state1"].float()), "float32"),
        (lambda s: s.update(absmax1=s["absmax1"][1:]), "block"),
        (lambda s: s.update(qmap2=s["qmap1"]), "unsigned dynamic code book"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, words: str) -> None:
    optimizer = optim.AdamW8bit(network().parameters())
    with pytest.raises(CheckpointError, match=words):
        optimizer.load_state_dict(broken(change))


def test_another_optimizers_state_is_refused() -> None:
    _, lion, _ = train(optim.Lion8bit, 1)
    with pytest.raises(CheckpointError, match="another optimizer than Adam"):
        optim.AdamW8bit(network().parameters()).load_state_dict(lion.state_dict())
