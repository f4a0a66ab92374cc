"""Kernels for the operations, and why one is absent."""

from llmint8.backends.native import register

__all__ = ["register"]
