"""Updates that are bounded by the norm of the tensor they change: what LAMB and LARS add."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmint8 import ops
from llmint8.optim import saved
from llmint8.optim.base import BlockwiseOptimizer
from llmint8.reference.optimizers import Common, Rule


class ClippedOptimizer(BlockwiseOptimizer):
    """Scales an update down whose norm exceeds `max_unorm` times that of the weights.

    Weights that are all zero, as LoRA's B at the start, have no such bound: they would stay zero for ever.
    """

    def _scaled(
        self, parameter: Tensor, rule: Rule, p: Tensor, g: Tensor, state: dict[str, Any], common: Common,
        constants: list[float], options: dict[str, Any],
    ) -> Common:  # fmt: skip
        if not options["max_unorm"]:
            return common
        states, absmax = saved.tensors(state, len(rule.signed))
        squares = ops.optimizer_norms(rule, p, g, states, absmax, common, constants).T.tolist()
        # Exactly rounded sums, so that their order, and with it the kernel, does not matter.
        sums = _over_all_shards(parameter, [math.fsum(part) for part in squares])
        weight, update = (math.sqrt(total) for total in sums)
        bound = options["max_unorm"] * weight
        return replace(common, step=common.step * bound / update) if 0 < bound < update else common


def _over_all_shards(parameter: Any, sums: list[float]) -> list[float]:
    """Sums over a whole parameter, of which this process may hold a part (FSDP2)."""
    if not hasattr(parameter, "placements"):
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    own = torch.tensor(sums, dtype=torch.float64, device=parameter.to_local().device)
    placements = [Partial() if placement.is_shard() else Replicate() for placement in parameter.placements]
    whole: Any = DTensor.from_local(own, parameter.device_mesh, placements)
    total: list[float] = whole.full_tensor().tolist()
    return total
