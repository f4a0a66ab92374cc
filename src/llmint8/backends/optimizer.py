"""Steps of optimizers on a CPU: one pass over each tensor in C++, in the bits of the reference."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.backends.native import DTYPES, Native, engine
from llmint8.ops.optimizer import OPTIMIZER_KERNELS, OptimizerKernels, check_step
from llmint8.reference.blockwise import block_count
from llmint8.reference.optimizers import Common, Rule


def run(
    native: Native, rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None],
    common: Common, constants: list[float], norms: Tensor | None,
) -> None:  # fmt: skip
    """`llmint8_optimizer_step` on tensors. norms: float64 `[blocks, 2]` to measure, None to update."""
    check_step(p, g, states, absmax)
    missing = [None] * (3 - len(states))
    shared = (common.decay, common.step, common.coupled_decay, common.update_decay)
    values = (ctypes.c_float * (len(shared) + len(constants)))(*shared, *constants)
    native.call(
        "llmint8_optimizer_step", DTYPES[p.dtype], DTYPES[g.dtype], rule.code, p.numel(),
        p.data_ptr(), g.data_ptr(),
        *(state.data_ptr() for state in states), *missing,
        *(None if scale is None else scale.data_ptr() for scale in absmax), *missing,
        ctypes.addressof(values), None if norms is None else norms.data_ptr(),
    )  # fmt: skip


def _step(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> None:  # fmt: skip
    native = engine()
    if native is None:
        reference.optimizer_step(rule, p, g, states, absmax, common, constants)
    else:
        run(native, rule, p, g, states, absmax, common, constants, None)


def _norms(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> Tensor:  # fmt: skip
    native = engine()
    if native is None:
        return reference.optimizer_norms(rule, p, g, states, absmax, common, constants)
    norms = torch.empty(block_count(p.numel()), 2, dtype=torch.float64)
    run(native, rule, p, g, states, absmax, common, constants, norms)
    return norms


def register() -> None:
    """Let these run `ops.optimizer_step` and `ops.optimizer_norms` on CPUs."""
    OPTIMIZER_KERNELS["cpu"] = OptimizerKernels(_step, _norms)
