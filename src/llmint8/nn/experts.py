"""`Int8Experts`: the fused experts of a mixture, whose weights are two tensors of three dimensions.

It stands in for every class of transformers that follows its experts interface (`gate_up_proj` or `up_proj`,
`down_proj`, an optional bias and gate of its own); the class itself says how it gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import memory, ops, reference
from llmint8.config import Threshold
from llmint8.nn.casting import keeping
from llmint8.nn.linear import invalid_tensors
from llmint8.nn.threshold import HasThreshold
from llmint8.numerics import DEFAULT_THRESHOLD

#: What a class of transformers' experts interface says about itself.
_INTERFACE = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts", "act_fn")


def is_experts(module: nn.Module) -> bool:
    """Whether `Int8Experts` can stand in for this: it follows transformers' experts interface, told by its
    attributes, so that transformers need not be imported."""
    if isinstance(module, Int8Experts) or not callable(getattr(module, "_apply_gate", None)):
        return False
    if not all(hasattr(module, name) for name in _INTERFACE[:-1]):
        return False
    weights = (module._parameters.get(name) for name in expert_weights(module))
    return all(weight is not None and weight.dim() == 3 for weight in weights)


def expert_weights(module: nn.Module) -> tuple[str, str]:
    """The names of the two weights."""
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")


def experts_as_linear(module: nn.Module, weight: Tensor) -> Tensor:
    """A float weight of `module` as `[E, N, K]`, a view."""
    return weight.transpose(1, 2) if module.is_transposed else weight


def quantize_experts(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """`reference.quantize_weight` of each expert: float `[E, N, K]` to int8 `[E, N, K]`, float32 `[E, N]`."""
    codes = memory.zeros(weight.shape, device=weight.device)
    absmax = torch.empty(weight.shape[:2], dtype=torch.float32, device=weight.device)
    for index in range(weight.shape[0]):
        codes[index], absmax[index] = reference.quantize_weight(weight[index], f"{name}[{index}]")
    return codes, absmax


class Int8Experts(HasThreshold, nn.Module):
    """Experts with int8 weights: each is two linear layers with a gate or an activation between them.

    State, for each WEIGHT of `weights` (`gate_up_proj` or `up_proj`; `down_proj`): `WEIGHT` int8 `[E, N, K]`
    (a Parameter without gradient, this way round whatever the float class stores) and `WEIGHT_SCB` float32
    `[E, N]`, the largest magnitude of each row of each expert; `WEIGHT_bias` float `[E, N]` if the float
    class has it. All other attributes are those of the float module.

    threshold: 0, t > 0 or "auto", see `Int8Config`; may be set at any time.
    """

    float_class: Any
    weights: tuple[str, str]
    num_experts: int
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]

    @classmethod
    def empty_like(cls, experts: nn.Module, threshold: Threshold = DEFAULT_THRESHOLD) -> Int8Experts:
        """The int8 form of float experts on the meta device; biases are shared."""
        new = cls()
        for key, value in vars(experts).items():
            if key not in vars(new):
                setattr(new, key, value)
        new._modules.update(experts._modules)
        new._buffers.update(experts._buffers)
        new.float_class = type(experts)
        new.weights = expert_weights(experts)
        new.threshold = threshold
        for key, parameter in experts._parameters.items():
            if key not in new.weights:
                new.register_parameter(key, parameter)
                continue
            shape = experts_as_linear(experts, getattr(experts, key)).shape
            empty = torch.empty(shape, dtype=torch.int8, device="meta")
            new.register_parameter(key, nn.Parameter(empty, requires_grad=False))
            new.register_buffer(f"{key}_SCB", torch.empty(shape[:2], device="meta", dtype=torch.float32))
        return new.train(experts.training)

    @classmethod
    def from_experts(
        cls, experts: nn.Module, threshold: Threshold = DEFAULT_THRESHOLD, name: str = "experts"
    ) -> Int8Experts:
        """Quantise the experts of a mixture (see `is_experts`); they are not modified, biases are shared.

        name: what an error calls them. Raises QuantizationError for a non-finite weight.
        """
        new = cls.empty_like(experts, threshold)
        for key in new.weights:
            weight = experts_as_linear(experts, getattr(experts, key).detach())
            codes, absmax = quantize_experts(weight, f"{name}.{key}")
            setattr(new, key, nn.Parameter(codes, requires_grad=False))
            setattr(new, f"{key}_SCB", absmax)
        return new

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """What the float class computes, with an int8 product for every linear layer of every expert.

        hidden_states: float `[T, H]`. top_k_weights: float `[T, top_k]`. top_k_index: int64 `[T, top_k]`, the
            experts of each token; numbers from `num_experts` on mean none.

        Returns `[T, H]` in the dtype of hidden_states. A token's experts are added in ascending order, so its
        result does not depend on the other tokens.
        """
        index, position = top_k_index.sort(dim=-1)
        chosen = index.shape[-1]
        expert = index.flatten()
        result = self._experts(expert, hidden_states.repeat_interleave(chosen, dim=0))
        result = (result * top_k_weights.gather(-1, position).flatten()[:, None]).to(hidden_states.dtype)
        result = torch.where((expert < self.num_experts)[:, None], result, 0)
        output = torch.zeros_like(hidden_states)
        for each in result.view(*index.shape, -1).unbind(1):
            output = output + each
        return output

    def _experts(self, expert: Tensor, x: Tensor) -> Tensor:
        """Row r, `[R, H]`, through the expert `expert[r]`."""
        up, down = self.weights
        hidden = self._linear(up, expert, x)
        gated = self.float_class._apply_gate(self, hidden) if self.has_gate else self.act_fn(hidden)
        y = self._linear(down, expert, gated)
        return self.post_expert_norm(y) if self.has_post_expert_norm else y

    def _linear(self, weight: str, expert: Tensor, x: Tensor) -> Tensor:
        bias = getattr(self, f"{weight}_bias") if self.has_bias else None
        codes, absmax = getattr(self, weight), getattr(self, f"{weight}_SCB")
        y: Tensor = ops.experts_linear(x, expert, codes, absmax, bias, self._threshold_code)
        return y

    def dequantize(self, weight: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One of `weights` as floats, `[E, N, K]`."""
        codes, absmax = getattr(self, weight), getattr(self, f"{weight}_SCB")
        flat = reference.dequantize_weight(codes.flatten(0, 1), absmax.flatten(), dtype)
        return flat.view(codes.shape)

    def to_float_layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The float class with the de-quantised weights; it shares the biases."""
        experts: nn.Module = self.float_class.__new__(self.float_class)
        nn.Module.__init__(experts)
        own = {*vars(experts), "float_class", "weights", "_threshold_code"}
        for key, value in vars(self).items():
            if key not in own:
                setattr(experts, key, value)
        experts._modules.update(self._modules)
        scales = {f"{key}_SCB" for key in self.weights}
        experts._buffers.update({k: b for k, b in self._buffers.items() if k not in scales})
        for key, parameter in self._parameters.items():
            if key in self.weights:
                weight = experts_as_linear(self, self.dequantize(key, dtype)).contiguous()
                experts.register_parameter(key, nn.Parameter(weight))
            else:
                experts.register_parameter(key, parameter)
        return experts.train(self.training)

    def tensors(self) -> dict[str, Tensor]:
        """Codes, scales and biases by name."""
        return {**{k: p for k, p in self._parameters.items() if p is not None}, **self._scales()}

    def invalid_state(self) -> str | None:
        """Why the tensors of this module cannot be int8 experts, or None."""
        for key in self.weights:
            reason = invalid_tensors(getattr(self, key), getattr(self, f"{key}_SCB"), None, 3)
            if reason is not None:
                return f"{key}: {reason}"
        return None

    def extra_repr(self) -> str:
        """The arguments that matter, for `print(model)`."""
        shapes = ", ".join(f"{key}={tuple(getattr(self, key).shape)}" for key in self.weights)
        return f"{self.float_class.__name__}, {shapes}, threshold={self.threshold}"

    def _scales(self) -> dict[str, Tensor]:
        return {f"{key}_SCB": getattr(self, f"{key}_SCB") for key in self.weights}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Experts:
        super()._apply(keeping(fn, *self._scales().values()), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        errors: list[str] = args[4]
        for key in self.weights:
            codes, absmax = state_dict.get(f"{prefix}{key}"), state_dict.get(f"{prefix}{key}_SCB")
            reason = None
            if (codes is None) != (absmax is None):
                reason = f"{key} and {key}_SCB mean nothing without each other, and one is missing"
            elif codes is not None and absmax is not None:
                reason = invalid_tensors(codes, absmax, None, 3)
            if reason is not None:
                errors.append(f"{prefix}{key}: {reason}")
                return  # nothing of a layer that cannot be right is taken over
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
