"""Launches of kernels, past Triton's dispatch where the same launch was made before.

Triton decides in Python, at every launch, which compiled kernel the arguments need: several times what the
launch itself costs. Here one look-up decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Addresses that this divides are compiled differently.
_ALIGNMENT = 16


class Launch:
    """A kernel with its constants, for tensors of one device, of the same types, and the same ints each time.

    constants: `tl.constexpr` parameters, and options of the compiler, by name.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any]) -> None:
        self._kernel, self._constants = kernel, constants
        self._compiled: dict[tuple[int, ...] | None, tuple[Any, ...]] = {}

    def __call__(self, programs: int, tensors: Sequence[Tensor], numbers: Sequence[float]) -> None:
        """Run so many programs on the current device. The kernel takes tensors, numbers, then constants."""
        addresses = 0
        for tensor in tensors:
            addresses |= tensor.data_ptr()
        key = None if addresses % _ALIGNMENT == 0 else tuple(t.data_ptr() % _ALIGNMENT for t in tensors)
        found = self._compiled.get(key)
        if found is not None:
            run, function, metadata, values = found
            stream = torch._C._cuda_getCurrentRawStream(tensors[0].device.index)
            run(programs, 1, 1, stream, function, metadata, None, None, None, *tensors, *numbers, *values)
            return
        compiled = self._kernel[(programs,)](*tensors, *numbers, **self._constants)
        # The interpreter compiles nothing; ROCm's kernels also depend on the sizes of tensors.
        if compiled is not None and not torch.version.hip:
            names = self._kernel.arg_names[len(tensors) + len(numbers) :]
            values = tuple(self._constants[name] for name in names)
            self._compiled[key] = compiled.run, compiled.function, compiled.packed_metadata, values


_LAUNCHES: dict[Any, Launch] = {}


def launch(
    kernel: Any, programs: int, tensors: Sequence[Tensor], numbers: Sequence[float], constants: dict[str, Any]
) -> None:
    """The same where a look-up finds the `Launch`."""
    ints = [number for number in numbers if type(number) is int]
    types = [tensor.dtype for tensor in tensors]
    key = id(kernel), tensors[0].device, *constants.values(), *types, *ints
    found = _LAUNCHES.get(key)
    if found is None:
        found = _LAUNCHES[key] = Launch(kernel, constants)
    found(programs, tensors, numbers)
