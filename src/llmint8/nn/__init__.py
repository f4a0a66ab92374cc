"""Modules with int8 weights."""

from llmint8.nn.conv1d import Int8Conv1D, is_conv1d, weight_as_linear
from llmint8.nn.linear import Int8Linear

__all__ = ["Int8Conv1D", "Int8Linear", "is_conv1d", "weight_as_linear"]
