"""FSDP2 shards an int8 model with adapters as it is: every loss and gradient has the bits of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from distributed.ranks import RANKS, needs_gloo, run_ranks
from llmint8 import Int8Config, Int8Linear, quantize_model

peft = pytest.importorskip("peft", reason="needs peft")
pytestmark = needs_gloo

TOKENS = torch.arange(40).reshape(2 * RANKS, 10)
DTYPES = (torch.float32, torch.bfloat16)


def with_adapters(dtype: torch.dtype) -> nn.Module:
    """Adapters stay float32, as peft makes them, whatever the rest is cast to."""
    model = tiny.tiny_llama(attention_bias=True, intermediate_size=100)
    config = Int8Config("auto", outlier_weights="int16")  # the columns of down_proj, which has an adapter
    quantize_model(model, config, calibration_ids=torch.arange(200)[None])
    assert any(layer.mlp.down_proj.outlier_cols is not None for layer in model.model.layers)
    torch.manual_seed(1)
    adapters = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted: nn.Module = peft.get_peft_model(model.to(dtype), adapters)
    return adapted.train()


def loss_of(model: nn.Module, rank: int) -> Tensor:
    batch = TOKENS[2 * rank : 2 * rank + 2]
    loss: Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def one_step(rank: int) -> dict[torch.dtype, dict[str, Any]]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    results = {}
    for dtype in DTYPES:
        model = with_adapters(dtype)
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        linear = next(m for m in model.modules() if isinstance(m, Int8Linear))
        held = {name: p.to_local() for name, p in linear.named_parameters() if isinstance(p, DTensor)}
        optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
        loss = loss_of(model, rank)
        loss.backward()
        gradients = {name: p.grad.full_tensor() for name, p in trainable(model).items()}
        optimizer.step()
        results[dtype] = {
            "held": held,
            "loss": loss.detach(),
            "gradients": gradients,
            "stepped": {name: p.full_tensor().detach() for name, p in trainable(model).items()},
            "weight": linear.weight.full_tensor(),
        }
    return results


@pytest.fixture(scope="module")
def ranks() -> list[Any]:
    return run_ranks(one_step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_has_the_bits_of_one_process(ranks: list[Any], dtype: torch.dtype) -> None:
    model = with_adapters(dtype)
    losses = [loss_of(model, rank) for rank in range(RANKS)]
    (sum(losses) / RANKS).backward()
    gradients = {name: p.grad for name, p in trainable(model).items()}
    torch.optim.SGD(trainable(model).values(), lr=0.1).step()
    for rank, loss in enumerate(losses):
        got = ranks[rank][dtype]
        assert torch.equal(got["loss"], loss.detach())
        assert got["gradients"].keys() == gradients.keys()
        assert all(grad.abs().max() > 0 for grad in gradients.values())
        for name, parameter in trainable(model).items():
            assert torch.equal(got["gradients"][name], gradients[name]), name
            assert torch.equal(got["stepped"][name], parameter.detach()), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_rank_holds_half_of_the_codes(ranks: list[Any], dtype: torch.dtype) -> None:
    whole = next(m for m in with_adapters(dtype).modules() if isinstance(m, Int8Linear))
    parts = [rank[dtype]["held"]["weight"] for rank in ranks]
    assert [(part.dtype, len(part)) for part in parts] == [(torch.int8, len(whole.weight) // RANKS)] * RANKS
    assert torch.equal(torch.cat(parts), whole.weight)
    assert torch.equal(ranks[0][dtype]["weight"], whole.weight)
