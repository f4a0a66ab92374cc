"""The state of a parameter as a dictionary, with the keys of bitsandbytes: step, state1, absmax1, qmap1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmint8.errors import CheckpointError
from llmint8.reference import dynamic_code_book
from llmint8.reference.blockwise import block_count
from llmint8.reference.optimizers import Rule

#: bitsandbytes wraps what is quantised in a dictionary, so that FSDP1 does not gather it.
_WRAPPED = "__bnb_optimizer_quant_state__"


def tensors(state: dict[str, Any], count: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """The states of a parameter, and their absmax or None."""
    indices = range(1, count + 1)
    return [state[f"state{i}"] for i in indices], [state.get(f"absmax{i}") for i in indices]


def with_code_books(state_dict: dict[str, Any], signed: Sequence[tuple[bool, ...]]) -> dict[str, Any]:
    """A state dictionary whose 8-bit states name their code books.

    signed: of each parameter, in the order of its ids, which of its states hold negative numbers.
    """
    books = {sign: dynamic_code_book(sign) for sign in (True, False)}
    full = {}
    for index, state in state_dict["state"].items():
        own = dict(state)
        for i, sign in enumerate(signed[index], 1):
            if f"absmax{i}" in own:
                own[f"qmap{i}"] = books[sign]
        full[index] = own
    return {**state_dict, "state": full}


def checked(state: dict[str, Any], part: Tensor, rule: Rule, name: str) -> dict[str, Any]:
    """A saved state on the device of its parameter, without code books.

    state: flat, or wrapped by bitsandbytes. part: what this process holds of the parameter. name: for errors.
    Raises CheckpointError if it does not fit.
    """
    flat = {**state, **state.get(_WRAPPED, {})}
    own: dict[str, Any] = {"step": int(flat["step"]) if "step" in flat else 0}
    for i, signed in enumerate(rule.signed, 1):
        value, absmax = flat.get(f"state{i}"), flat.get(f"absmax{i}")
        if not isinstance(value, Tensor) or value.numel() != part.numel():
            given = "none" if value is None else f"{value.numel()} elements"
            raise CheckpointError(
                f"state{i} of parameter {name} must have {part.numel()} elements, the saved one has {given}; "
                f"it was saved by another optimizer than {rule.name} or for another model"
            )
        wanted = torch.float32 if absmax is None else torch.uint8
        if value.dtype != wanted or (absmax is not None and absmax.numel() != block_count(part.numel())):
            raise CheckpointError(
                f"state{i} of parameter {name} must be uint8 with one absmax per block of 256, or float32, "
                f"the saved one is {value.dtype}"
            )
        # A copy: two optimizers that load one dictionary must not share their state.
        own[f"state{i}"] = value.detach().to(part.device, copy=True).view(part.shape)
        if absmax is None:
            continue
        own[f"absmax{i}"] = absmax.detach().to(part.device, torch.float32, copy=True)
        book = flat.get(f"qmap{i}")
        if book is not None and not torch.equal(book.cpu(), dynamic_code_book(signed)):
            raise CheckpointError(
                f"qmap{i} of parameter {name} is not the {'signed' if signed else 'unsigned'} dynamic code "
                f"book that {rule.name} uses here; load only its weights, and start with a new state"
            )
    return own
