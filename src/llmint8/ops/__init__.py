"""The operations as torch operators: schema, shapes, default implementation and gradient in one place.

Callers use the objects below, never the names: torch accepts a misspelt operator name without an error.
"""

from llmint8.ops.direct import call_linear
from llmint8.ops.experts_linear import experts_linear
from llmint8.ops.fourbit import dequantize_4bit, linear_4bit
from llmint8.ops.input_gradient import input_gradient
from llmint8.ops.linear import linear, reference_linear
from llmint8.ops.optimizer import optimizer_norms, optimizer_step
from llmint8.ops.quantize_rows import quantize_rows

__all__ = [
    "call_linear",
    "dequantize_4bit",
    "experts_linear",
    "input_gradient",
    "linear",
    "linear_4bit",
    "optimizer_norms",
    "optimizer_step",
    "quantize_rows",
    "reference_linear",
]
