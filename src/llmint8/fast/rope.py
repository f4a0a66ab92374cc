"""Cosines and sines of a model's own rotary embedding, kept for the positions that were asked before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Kinds of rotary embedding whose angles change with the length of the text.
_CHANGING = ("dynamic", "longrope")
_FIRST = 1024


class RotaryTable:
    """What `rotary_emb(hidden, position_ids)` returns: cos and sin `[B or 1, T, D]` in the dtype of hidden.

    Position p is computed once, by the module itself; the table is thrown away when the module's frequencies
    are others than before.
    """

    def __init__(self, rotary: Any) -> None:
        self._rotary = rotary
        self._changing = getattr(rotary, "rope_type", None) in _CHANGING
        self._state: Any = None
        self._cos = self._sin = torch.empty(0)

    def __call__(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids: int64 `[B or 1, T]`."""
        first, last = (int(bound) for bound in torch.aminmax(position_ids))
        if self._changing or first < 0:
            cos, sin = self._rotary(hidden, position_ids)
            return cos, sin
        frequencies = self._rotary.inv_freq
        state = (
            frequencies.data_ptr(),
            frequencies._version,
            getattr(self._rotary, "attention_scaling", None),
            hidden.dtype,
        )
        if state != self._state or last >= self._cos.shape[0]:
            size = max(_FIRST, 1 << last.bit_length())
            cos, sin = self._rotary(hidden, torch.arange(size).unsqueeze(0))
            self._cos, self._sin, self._state = cos[0], sin[0], state
        return self._cos[position_ids], self._sin[position_ids]
