"""`ops.optimizer_step` and `ops.optimizer_norms` on a GPU: one launch a tensor, the reference's bits."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from llmint8.backends.triton import tiles
from llmint8.backends.triton.kernels.code_book import cells
from llmint8.backends.triton.kernels.optimizer import optimizer_kernel
from llmint8.backends.triton.launch import launch
from llmint8.backends.triton.plan import BITS, DTYPES, EXACT
from llmint8.ops.optimizer import check_step
from llmint8.reference.blockwise import block_count, dynamic_code_book
from llmint8.reference.optimizers import Common, Rule

#: The most states of a rule, and the most constants of its own.
_STATES, _CONSTANTS = 3, 10


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Code books float32 `[2, 256]` and cells int32 `[2, cells]`, the unsigned ones first."""
    books = torch.stack([dynamic_code_book(signed) for signed in (False, True)])
    return books.to(device), torch.stack([cells(signed) for signed in (False, True)]).to(device)


def run(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float], norms: Tensor | None,
) -> None:  # fmt: skip
    """`optimizer_kernel` on tensors. norms: float64 `[blocks, 2]` to measure, None to update."""
    check_step(p, g, states, absmax)
    blocks = block_count(p.numel())
    if not blocks:
        return
    books, table = _tables(p.device)
    missing = _STATES - len(states)
    scales = [states[i] if scale is None else scale for i, scale in enumerate(absmax)]
    tensors = (
        p, p.view(BITS[p.dtype]), g, *states, *states[:1] * missing, *scales, *states[:1] * missing,
        books, table, books if norms is None else norms,
    )  # fmt: skip
    numbers = (
        p.numel(), float(common.decay), float(common.step), float(common.coupled_decay),
        float(common.update_decay), *constants, *[0.0] * (_CONSTANTS - len(constants)),
    )  # fmt: skip
    kernel_constants = {
        "RULE": rule.code, "STATES": len(states),
        **{f"SIGNED{i}": int(i < len(states) and rule.signed[i]) for i in range(_STATES)},
        "COUPLED": common.coupled_decay != 0, "UPDATE_DECAY": common.update_decay != 0,
        "MEASURE": norms is not None, "DTYPE": DTYPES[p.dtype], "ROWS": tiles.OPTIMIZER_BLOCKS, **EXACT,
    }  # fmt: skip
    programs = tiles.ceil_div(blocks, tiles.OPTIMIZER_BLOCKS)
    launch(optimizer_kernel, programs, tensors, numbers, kernel_constants)


def step(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> None:  # fmt: skip
    """`ops.optimizer_step`."""
    run(rule, p, g, states, absmax, common, constants, None)


def norms(
    rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None], common: Common,
    constants: list[float],
) -> Tensor:  # fmt: skip
    """`ops.optimizer_norms`."""
    measured = torch.empty(block_count(p.numel()), 2, dtype=torch.float64, device=p.device)
    run(rule, p, g, states, absmax, common, constants, measured)
    return measured
