"""Kernels for the operations, and why one is absent."""

from llmint8.backends import fourbit, gradient, native, optimizer
from llmint8.backends.native import BackendStatus, status

__all__ = ["BackendStatus", "register", "status"]


def register() -> None:
    """Make the kernels the operations' CPU implementations; the library is loaded at the first call."""
    native.register()
    gradient.register()
    optimizer.register()
    fourbit.register()
