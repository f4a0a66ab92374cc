"""Steps of optimizers on a CPU: one pass over each tensor in C++, in the bits of the reference."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.backends.native import DTYPES, Native, engine
from llmint8.errors import InputError
from llmint8.ops.optimizer import OPTIMIZER_KERNELS, OptimizerKernels
from llmint8.reference.blockwise import block_count
from llmint8.reference.optimizers import Common, Rule


def _check(p: Tensor, tensors: dict[str, Tensor]) -> None:
    """Raise InputError for what raw pointers would read wrongly."""
    for name, tensor in tensors.items():
        if tensor.numel() != p.numel() or not tensor.is_contiguous() or tensor.device != p.device:
            raise InputError(
                f"{name} must be contiguous, on {p.device} and of {p.numel()} elements, "
                f"got {list(tensor.shape)} on {tensor.device} with strides {tensor.stride()}"
            )


def run(
    native: Native, rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None],
    common: Common, constants: list[float], norms: Tensor | None,
) -> None:  # fmt: skip
    """`llmint8_optimizer_step` on tensors. norms: float64 `[blocks, 2]` to measure, None to update."""
    for name, floats in (("p", p), ("g", g)):
        if floats.dtype not in DTYPES:
            raise InputError(f"{name} must be float32, float16 or bfloat16, got {floats.dtype}")
    _check(p, {"p": p, "g": g, **{f"state {i + 1}": state for i, state in enumerate(states)}})
    for state, scale in zip(states, absmax, strict=True):
        wanted = torch.float32 if scale is None else torch.uint8
        if state.dtype != wanted or (scale is not None and scale.numel() != block_count(p.numel())):
            raise InputError(
                f"a state must be uint8 with one absmax per block, or float32, got {state.dtype}"
            )
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
