"""Launches of kernels, past Triton's dispatch where the same launch was made before.

Triton decides in Python, at every launch, which compiled kernel the arguments need: several times what the
launch itself costs. Here one look-up decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: What Triton compiles differently: addresses that this divides, and integers that are 1, that this divides,
#: or that need 64 bits.
_ALIGNMENT = 16
_INT32_MAX = 2**31 - 1
_COMPILED: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def _kind(argument: Any) -> Any:
    """What a compiled kernel assumes of an argument."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % _ALIGNMENT == 0
    if isinstance(argument, int):
        return argument == 1, argument % _ALIGNMENT == 0, argument > _INT32_MAX
    return float


def launch(kernel: Any, programs: int, arguments: Sequence[Any], constants: dict[str, Any]) -> None:
    """Run so many programs of a kernel on the current device.

    arguments: tensors, ints and floats, in the kernel's order, in which its constants come last. constants:
    its `tl.constexpr` parameters, and options of the compiler, by name.
    """
    key = (id(kernel), arguments[0].device, tuple(constants.values()), *map(_kind, arguments))
    found = _COMPILED.get(key)
    if found is not None:
        compiled, values = found
        compiled[programs, 1, 1](*arguments, *values)
        return
    compiled = kernel[(programs,)](*arguments, **constants)
    # The interpreter compiles nothing; ROCm's kernels also depend on the sizes of tensors.
    if compiled is not None and not torch.version.hip:
        names = kernel.arg_names[len(arguments) :]
        _COMPILED[key] = compiled, tuple(constants[name] for name in names)
