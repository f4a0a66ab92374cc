"""`optimizer_step` and `optimizer_norms`: one step of an optimizer on one tensor, in place.

These are plain functions and no torch operators: nothing differentiates through an optimizer, and a step that
touches hundreds of small tensors should not pay the dispatcher for each. Backends put their kernels here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.errors import InputError
from llmint8.reference.blockwise import block_count
from llmint8.reference.optimizers import Common, Rule
from llmint8.reference.rowwise import FLOATS

Arguments = tuple[Rule, Tensor, Tensor, "list[Tensor]", "list[Tensor | None]", Common, "list[float]"]


@dataclass(frozen=True)
class OptimizerKernels:
    """How a device runs the two functions; arguments and results are those of the reference."""

    step: Callable[..., None]
    norms: Callable[..., Tensor]


#: By device type; a device without an entry runs the reference.
OPTIMIZER_KERNELS: dict[str, OptimizerKernels] = {}
_REFERENCE = OptimizerKernels(reference.optimizer_step, reference.optimizer_norms)


def check_step(p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None]) -> None:
    """Raise InputError for what kernels, which see only addresses, would read wrongly."""
    for name, floats in (("p", p), ("g", g)):
        if floats.dtype not in FLOATS:
            raise InputError(f"{name} must be float32, float16 or bfloat16, got {floats.dtype}")
    tensors = {"p": p, "g": g, **{f"state {i + 1}": state for i, state in enumerate(states)}}
    for name, tensor in tensors.items():
        if tensor.numel() != p.numel() or not tensor.is_contiguous() or tensor.device != p.device:
            raise InputError(
                f"{name} must be contiguous, on {p.device} and of {p.numel()} elements, "
                f"got {list(tensor.shape)} on {tensor.device} with strides {tensor.stride()}"
            )
    for state, scale in zip(states, absmax, strict=True):
        wanted = torch.float32 if scale is None else torch.uint8
        if state.dtype != wanted or (scale is not None and scale.numel() != block_count(p.numel())):
            raise InputError(
                f"a state must be uint8 with one absmax per block, or float32, got {state.dtype}"
            )


def optimizer_step(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> None:  # fmt: skip
    """`reference.optimizer_step` by the device's kernel."""
    OPTIMIZER_KERNELS.get(p.device.type, _REFERENCE).step(rule, p, g, states, absmax, common, constants)


def optimizer_norms(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> Tensor:  # fmt: skip
    """`reference.optimizer_norms` by the device's kernel."""
    kernels = OPTIMIZER_KERNELS.get(p.device.type, _REFERENCE)
    return kernels.norms(rule, p, g, states, absmax, common, constants)
