"""Kernels for the operations, and why one is absent."""

from llmint8.backends.native import BackendStatus, register, status

__all__ = ["BackendStatus", "register", "status"]
