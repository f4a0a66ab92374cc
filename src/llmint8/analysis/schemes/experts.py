"""The fused experts of a mixture, taken apart into the linear layers that they are made of.

For every class of transformers that follows its experts interface; told by its attributes, so that
transformers need not be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmint8.analysis.schemes.scheme import Layer

#: What such a class says about itself.
_INTERFACE = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts")


def is_fused(module: nn.Module) -> bool:
    """Whether a module is the float experts of a mixture, with two weights of three dimensions."""
    if not callable(getattr(module, "_apply_gate", None)):
        return False
    if not all(hasattr(module, name) for name in _INTERFACE):
        return False
    weights = [module._parameters.get(key) for key in _weights(module)]
    return all(w is not None and w.dim() == 3 and w.is_floating_point() for w in weights)


def expert_layers(name: str, module: Any) -> dict[str, list[Layer]]:
    """The two linear layers of every expert: for each of the two weights, its name and a layer for each
    expert, all of which bear that name."""
    layers: dict[str, list[Layer]] = {}
    for key in _weights(module):
        weight = getattr(module, key).detach()
        weight = weight.transpose(1, 2) if module.is_transposed else weight
        bias = getattr(module, f"{key}_bias") if module.has_bias else None
        full = f"{name}.{key}"
        layers[full] = [
            Layer(full, weight[e], None if bias is None else bias[e]) for e in range(module.num_experts)
        ]
    return layers


def experts_forward(
    module: Any, layers: dict[str, list[Layer]], run: Callable[[Tensor, Layer], Tensor]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The forward of fused experts, with `run` for each linear layer.

    layers: what `expert_layers` returns.
    """
    up, down = layers.values()

    def expert(index: int, x: Tensor) -> Tensor:
        hidden = run(x, up[index])
        y = run(module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden), down[index])
        return module.post_expert_norm(y) if module.has_post_expert_norm else y

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        output = torch.zeros_like(hidden_states)
        for index in top_k_index.unique().tolist():
            if index >= module.num_experts:  # stands for no expert
                continue
            token, position = torch.where(top_k_index == index)
            result = expert(index, hidden_states[token]) * top_k_weights[token, position, None]
            output.index_add_(0, token, result.to(output.dtype))
        return output

    return forward


def _weights(module: Any) -> tuple[str, str]:
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
