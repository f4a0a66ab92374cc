"""Memory for weights, in huge pages where Linux gives them on request.

A call of few rows reads its weight at the speed of memory, and pages of 4 KiB may lie anywhere in it: calls
took up to 1.1 times as long with weights where torch's allocator puts them (docs/results.md, "Huge pages").
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_HUGE_PAGE = 2 << 20


def zeros(
    shape: Sequence[int], dtype: torch.dtype = torch.int8, device: torch.device | str | None = None
) -> Tensor:
    """`torch.zeros` for a weight: from 2 MiB on, on a CPU, in huge pages if the system has them.

    Only whole huge pages are asked for, so a weight takes no more memory than it has bytes.
    """
    found = torch.empty(tuple(shape), dtype=dtype, device=device)
    plain = type(found) is Tensor and found.device.type == "cpu"
    if plain and found.nbytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # of the mapping: torch's allocator may have another way
            return _map(found.nbytes).view(dtype).view(found.shape)
    return found.zero_()


def _map(size: int) -> Tensor:
    """Fresh zeros, uint8 `[size]`, that begin with a huge page."""
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % _HUGE_PAGE
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE, start, size // _HUGE_PAGE * _HUGE_PAGE)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)
