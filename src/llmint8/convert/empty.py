"""Int8 layers without data, for a loader to fill."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from llmint8.config import Threshold
from llmint8.nn import Int8Conv1D, Int8Linear, is_conv1d, weight_as_linear


def empty_like(source: nn.Module, threshold: Threshold) -> Int8Linear:
    """An `Int8Linear` on the meta device, with the shape of a linear layer or `Conv1D`."""
    rows, features = weight_as_linear(source).shape
    bias = cast("Tensor | None", source.bias)
    kind = Int8Conv1D if is_conv1d(source) else Int8Linear
    dtype = None if bias is None else bias.dtype
    return kind(features, rows, bias is not None, "meta", dtype, threshold).train(source.training)
