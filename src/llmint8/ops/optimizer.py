"""`optimizer_step` and `optimizer_norms`: one step of an optimizer on one tensor, in place.

These are plain functions and no torch operators: nothing differentiates through an optimizer, and a step that
touches hundreds of small tensors should not pay the dispatcher for each. Backends put their kernels here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from llmint8 import reference
from llmint8.reference.optimizers import Common, Rule

Arguments = tuple[Rule, Tensor, Tensor, "list[Tensor]", "list[Tensor | None]", Common, "list[float]"]


@dataclass(frozen=True)
class OptimizerKernels:
    """How a device runs the two functions; arguments and results are those of the reference."""

    step: Callable[..., None]
    norms: Callable[..., Tensor]


#: By device type; a device without an entry runs the reference.
OPTIMIZER_KERNELS: dict[str, OptimizerKernels] = {}
_REFERENCE = OptimizerKernels(reference.optimizer_step, reference.optimizer_norms)


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
