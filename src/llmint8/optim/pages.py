"""Optimizer state that lies outside of the memory in which its parameters are.

A step takes a state in pieces. On a CPU each state is a file without a name, mapped into memory; the pages of
a piece go back to the operating system before the next one. What was written stays in its file cache for as
long as memory is not needed for anything else, and goes to the disk otherwise. On a GPU states are in pinned
memory of the host; a piece is copied to the GPU, and back after it was updated, in the order of its stream.
"""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmint8 import ops
from llmint8.errors import ConfigError
from llmint8.numerics import OPTIMIZER_BLOCK
from llmint8.reference.optimizers import Common, Rule


@dataclass
class Pages:
    """The paged states of one optimizer.

    resident_bytes: how much of all states is in memory, or on the GPU, at a time, at most. A copy of it
    (deepcopy, pickle) keeps its states in ordinary memory until they are loaded again.
    """

    resident_bytes: int = 64 << 20
    _maps: dict[int, mmap.mmap] = field(default_factory=dict)
    _gpus: set[torch.device] = field(default_factory=set)  # from which pieces are on their way back

    def __getstate__(self) -> dict[str, Any]:
        return {"resident_bytes": self.resident_bytes, "_maps": {}, "_gpus": set()}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor for parameters on a device: in a file of its own in the folder for temporary files, or in
        pinned memory.

        Raises ConfigError for a device that is neither a CPU nor a GPU.
        """
        if device.type == "cuda":
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        if device.type != "cpu":
            raise ConfigError(
                f"paged state needs parameters on a CPU or a GPU, got {device}; use is_paged=False"
            )
        elements = torch.Size(shape).numel()
        if not elements:
            return torch.empty(shape, dtype=dtype)
        with tempfile.TemporaryFile(prefix="llmint8-") as file:
            file.truncate(elements * dtype.itemsize)
            pages = mmap.mmap(file.fileno(), 0)
        tensor = torch.frombuffer(pages, dtype=dtype).view(shape)
        self._maps[tensor.data_ptr()] = pages
        return tensor

    def adopt(self, state: dict[str, Any]) -> dict[str, Any]:
        """The same state with its large tensors in files."""
        paged = {}
        for key, value in state.items():
            paged[key] = value
            if key.startswith("state"):
                paged[key] = self.empty(tuple(value.shape), value.dtype, value.device).copy_(value)
                self._release([paged[key]])
        return paged

    def step(
        self, rule: Rule, p: Tensor, g: Tensor, states: list[Tensor], absmax: list[Tensor | None],
        common: Common, constants: list[float],
    ) -> None:  # fmt: skip
        """`ops.optimizer_step`, piece by piece; see `settle`."""
        bytes_per_element = sum(state.element_size() for state in states)
        blocks = max(1, self.resident_bytes // (bytes_per_element * OPTIMIZER_BLOCK))
        flat_p, flat_g, flat = p.view(-1), g.view(-1), [state.view(-1) for state in states]
        for first in range(0, p.numel(), blocks * OPTIMIZER_BLOCK):
            piece = slice(first, first + blocks * OPTIMIZER_BLOCK)
            scales = [
                None if a is None else a[first // OPTIMIZER_BLOCK : first // OPTIMIZER_BLOCK + blocks]
                for a in absmax
            ]
            parts = [state[piece] for state in flat]
            moved = [_moved(part, p.device) for part in parts]
            ops.optimizer_step(rule, flat_p[piece], flat_g[piece], moved, scales, common, constants)
            for part, updated in zip(parts, moved, strict=True):
                if updated is not part:
                    part.copy_(updated, non_blocking=True)
            self._release(states)
        if p.is_cuda:
            self._gpus.add(p.device)

    def settle(self) -> None:
        """Wait until all states have come back from the GPUs, where `step` does not."""
        while self._gpus:
            torch.cuda.current_stream(self._gpus.pop()).synchronize()

    def _release(self, states: list[Tensor]) -> None:
        for state in states:
            pages = self._maps.get(state.data_ptr())
            if pages is not None:
                pages.madvise(mmap.MADV_DONTNEED)


def _moved(part: Tensor, device: torch.device) -> Tensor:
    """A piece of a state where its parameter is; itself if it is there."""
    return part.to(device, non_blocking=True)
