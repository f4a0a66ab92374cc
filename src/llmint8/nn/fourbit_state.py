"""The scales of a 4-bit weight under the keys of bitsandbytes' `QuantState`, which follow the weight's own.

`absmax`, `quant_map` (the code book), with double quantisation `nested_absmax` and `nested_quant_map`, and
`quant_state.bitsandbytes__nf4` (or fp4): JSON as bytes, uint8, with what is no tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmint8.errors import QuantizationError
from llmint8.numerics import OPTIMIZER_BLOCK
from llmint8.reference import code_book, dynamic_code_book
from llmint8.reference.fourbit import QUANT_TYPES

_STATE = "quant_state.bitsandbytes__"
_TENSORS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class FourbitState:
    """What belongs to the codes of a weight `[N, K]` of `dtype`, see `Linear4bit`."""

    quant_type: str
    block: int
    dtype: torch.dtype
    shape: tuple[int, int]
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None


def state_keys(keys: Iterable[str]) -> list[str]:
    """Those of some keys, without the weight's own name, that belong to a 4-bit weight."""
    return [key for key in keys if key in _TENSORS or key.startswith(_STATE)]


def write_state(state: FourbitState) -> dict[str, Tensor]:
    """Tensors by key."""
    device = state.absmax.device
    tensors = {"absmax": state.absmax, "quant_map": code_book(state.quant_type).to(device)}
    facts: dict[str, Any] = {
        "quant_type": state.quant_type,
        "blocksize": state.block,
        "dtype": str(state.dtype).removeprefix("torch."),
        "shape": list(state.shape),
    }
    if state.nested_absmax is not None and state.offset is not None:
        tensors |= {
            "nested_absmax": state.nested_absmax,
            "nested_quant_map": dynamic_code_book(True).to(device),
        }
        facts |= {
            "nested_blocksize": OPTIMIZER_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(state.offset),
        }
    packed = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8, device=device)
    return tensors | {_STATE + state.quant_type: packed}


def read_state(tensors: Mapping[str, Tensor], weight: Tensor, shape: tuple[int, int]) -> FourbitState:
    """The state of a weight of this shape, from tensors by key.

    weight: uint8, its codes. Raises QuantizationError, with the reason, for what cannot be one.
    """
    if weight.is_floating_point():
        raise QuantizationError(
            f"is {weight.dtype}, but the module has 4 bits: load the float checkpoint first, then quantise"
        )
    packed = [key for key in tensors if key.startswith(_STATE)]
    if len(packed) != 1 or "absmax" not in tensors:
        raise QuantizationError("absmax or quant_state is missing, without which the codes mean nothing")
    try:
        facts = json.loads(bytes(tensors[packed[0]].tolist()))
        quant_type, block, dtype = facts["quant_type"], facts["blocksize"], _FLOATS[facts["dtype"]]
        stored = tuple(facts["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise QuantizationError(f"quant_state cannot be read ({error})") from error
    count = shape[0] * shape[1]
    if quant_type not in QUANT_TYPES or not isinstance(block, int) or block < 1:
        raise QuantizationError(f"quant_state names {quant_type!r} in blocks of {block!r}: not known here")
    if stored != shape or weight.dtype != torch.uint8 or weight.numel() != -(-count // 2):
        raise QuantizationError(f"the codes are of a weight {list(stored)}, not {list(shape)}")
    absmax, blocks = tensors["absmax"], -(-count // block)
    nested = tensors.get("nested_absmax")
    if nested is None:
        if absmax.dtype != torch.float32 or absmax.shape != (blocks,):
            raise QuantizationError(f"absmax is {absmax.dtype} {list(absmax.shape)}, not float32 [{blocks}]")
        return FourbitState(quant_type, block, dtype, shape, absmax, None, None)
    parts = -(-blocks // OPTIMIZER_BLOCK)
    if facts.get("nested_blocksize") != OPTIMIZER_BLOCK or "nested_offset" not in facts:
        raise QuantizationError("the scales are quantised in another way than in blocks of 256 around a mean")
    if absmax.dtype != torch.uint8 or absmax.shape != (blocks,) or nested.shape != (parts,):
        raise QuantizationError(f"absmax and nested_absmax are not uint8 [{blocks}] and float32 [{parts}]")
    offset = torch.tensor(float(facts["nested_offset"]))
    return FourbitState(quant_type, block, dtype, shape, absmax, nested.float(), offset)
