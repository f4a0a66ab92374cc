"""Modules with quantised weights."""

from llmint8.nn.conv1d import Int8Conv1D, is_conv1d, weight_as_linear
from llmint8.nn.embedding import Int8Embedding, is_embedding
from llmint8.nn.experts import Int8Experts, expert_weights, experts_as_linear, is_experts, quantize_experts
from llmint8.nn.linear import Int8Linear
from llmint8.nn.linear4bit import Linear4bit

#: Every kind of module that holds int8 weights.
INT8_MODULES = (Int8Linear, Int8Experts, Int8Embedding)
#: Every kind of module that holds quantised weights.
QUANTIZED_MODULES = (*INT8_MODULES, Linear4bit)

__all__ = [
    "INT8_MODULES",
    "QUANTIZED_MODULES",
    "Int8Conv1D",
    "Int8Embedding",
    "Int8Experts",
    "Int8Linear",
    "Linear4bit",
    "expert_weights",
    "experts_as_linear",
    "is_conv1d",
    "is_embedding",
    "is_experts",
    "quantize_experts",
    "weight_as_linear",
]
