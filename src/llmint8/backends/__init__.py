"""Kernels for the operations, and why one is absent."""

from llmint8.backends import fourbit, gradient, native, optimizer, triton
from llmint8.backends.status import BackendStatus

__all__ = ["BackendStatus", "register", "status"]


def status() -> list[BackendStatus]:
    """The reference, every instruction set of the CPU, and GPUs, with the reason why one is not used.

    Raises BackendError if LLMINT8_ISA names what cannot run.
    """
    return [*native.status(), triton.status()]


def register() -> None:
    """Make the kernels the operations' implementations; libraries are loaded at the first call."""
    native.register()
    gradient.register()
    optimizer.register()
    fourbit.register()
    triton.register()
