"""GPU kernels in Triton, one source for CUDA and ROCm.

Nothing is imported, and no device is asked, before the first call on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from llmint8 import ops, reference
from llmint8.backends.status import BackendStatus
from llmint8.ops.direct import LINEAR_KERNELS
from llmint8.ops.input_gradient import matmul_input_gradient
from llmint8.ops.library import implement
from llmint8.ops.optimizer import OPTIMIZER_KERNELS, OptimizerKernels

NAME = "triton"
#: The least compute capability of a CUDA device, and the ROCm architectures, that a test compiles for.
LEAST_CUDA = (8, 0)
ROCM = ("gfx90a", "gfx942")


def _obstacle(index: int) -> str | None:
    """Why the kernels do not run on a GPU, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run: pip install 'llmint8[gpu]'"
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return None if architecture in ROCM else f"{architecture} is none of {', '.join(ROCM)}"
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CUDA:
        return "compute capability {}.{} is below {}.{}".format(*capability, *LEAST_CUDA)
    return None


@cache
def _usable(index: int) -> bool:
    """Whether the kernels run on a GPU; a warning, once, says why not."""
    obstacle = _obstacle(index)
    if obstacle is not None:
        warnings.warn(f"llmint8 runs its slow reference on GPU {index}: {obstacle}", stacklevel=3)
    return obstacle is None


def status() -> BackendStatus:
    """Whether GPU kernels run here, and on what, or why not. Asks the driver for the devices."""
    if not torch.cuda.is_available():
        return BackendStatus(NAME, False, False, "torch sees no GPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    reasons = {name: _obstacle(i) for i, name in enumerate(names)}
    if all(reasons.values()):
        return BackendStatus(NAME, False, False, "; ".join(f"{n}: {r}" for n, r in reasons.items()))
    used = ", ".join(name for name, reason in reasons.items() if reason is None)
    return BackendStatus(NAME, True, True, f"kernels for {used}")


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """The device becomes the current one, where kernels go; asking costs less than setting it."""
    return nullcontext() if torch.cuda.current_device() == device.index else torch.cuda.device(device)


def _kernel(module: str, function: str, fallback: Callable[..., Any], at: int = 0) -> Callable[..., Any]:
    """A function of a module here, where the kernels run on the GPU of argument `at`; else the fallback."""

    def run(*arguments: Any) -> Any:
        device = arguments[at].device
        if not _usable(device.index):
            return fallback(*arguments)
        with _current(device):
            return _function(module, function)(*arguments)

    return run


@cache
def _function(module: str, name: str) -> Callable[..., Any]:
    """Imports Triton at the first call."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return function


def register() -> None:
    """Make these the operations' implementations on GPUs, which torch calls CUDA with ROCm too."""
    linear = _kernel("linear", "linear", ops.reference_linear)
    implement(ops.quantize_rows, _kernel("linear", "quantize_rows", reference.quantize_rows), "CUDA")
    implement(ops.linear, linear, "CUDA")
    implement(ops.input_gradient, _kernel("gradient", "input_gradient", matmul_input_gradient), "CUDA")
    LINEAR_KERNELS["cuda"] = linear
    OPTIMIZER_KERNELS["cuda"] = OptimizerKernels(
        _kernel("optimizer", "step", reference.optimizer_step, at=1),
        _kernel("optimizer", "norms", reference.optimizer_norms, at=1),
    )
