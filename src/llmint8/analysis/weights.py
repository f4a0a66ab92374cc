"""Where a linear layer of a float model keeps its inputs."""

from __future__ import annotations

from torch import Tensor, nn


def linear_weight(module: nn.Module) -> Tensor | None:
    """The float weight of a linear layer as `[N, K]`, a view; None for any other module, also an int8 one.

    transformers' `Conv1D` stores `[K, N]` and is told by its attribute `nf`, so that transformers need not be
    imported.
    """
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if isinstance(module, nn.Linear):
        return weight
    return weight.T if getattr(module, "nf", None) == weight.shape[1] else None
