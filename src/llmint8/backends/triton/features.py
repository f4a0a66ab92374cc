"""What a GPU can do that kernels make use of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Features:
    """What one has.

    dot4: one instruction adds four int8 products; None where it would be slow to do without. early: a kernel
    may start before the one in front of it is done. hopper: tensor cores of that kind. processors: how many
    run programs at the same time.
    """

    dot4: bool | None
    early: bool
    hopper: bool
    processors: int


#: Triton's interpreter, on a CPU.
_INTERPRETER = Features(dot4=False, early=False, hopper=True, processors=4)


@cache
def _of_gpu(index: int) -> Features:
    properties = torch.cuda.get_device_properties(index)
    processors = properties.multi_processor_count
    if torch.version.hip:
        return Features(None, False, False, processors)
    return Features(True, properties.major >= 9, properties.major == 9, processors)


def features_of(device: torch.device) -> Features:
    """Those of a device; of the interpreter, on a CPU."""
    return _of_gpu(device.index) if device.type == "cuda" else _INTERPRETER
