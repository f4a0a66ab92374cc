"""Modules with int8 weights."""

from llmint8.nn.linear import Int8Linear

__all__ = ["Int8Linear"]
