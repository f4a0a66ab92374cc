"""FSDP2: each rank updates the shard that it holds, and the result is that of one process."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed.ranks import needs_gloo, run_ranks
from llmint8 import optim
from optim.problem import loss_of, network, train

pytestmark = needs_gloo


NAMES = ("AdamW8bit", "LAMB")


def sharded(_rank: int) -> dict[str, dict[str, Tensor]]:
    from torch.distributed.fsdp import fully_shard

    results = {}
    for name in NAMES:
        model = network()
        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
        optimizer = getattr(optim, name)(model.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3)
            optimizer.step()
        assert optimizer.state[model[0].weight]["state1"].shape == (64, 96)
        results[name] = {key: p.full_tensor().detach() for key, p in model.named_parameters()}
    return results


def test_shards() -> None:
    for results in run_ranks(sharded):
        for name in NAMES:
            want, _, _ = train(lambda p, name=name: getattr(optim, name)(p, lr=1e-2), 3)
            for key, value in want.named_parameters():
                torch.testing.assert_close(results[name][key], value.detach(), rtol=1e-4, atol=1e-5)
