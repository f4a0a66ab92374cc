"""The int8 form of one module: with its weight quantised, or without data for a loader to fill."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from llmint8.config import Threshold
from llmint8.nn import (
    Int8Conv1D,
    Int8Embedding,
    Int8Experts,
    Int8Linear,
    is_conv1d,
    is_embedding,
    is_experts,
    weight_as_linear,
)

#: Subclasses of `nn.Linear` that compute exactly what it does.
_SAME_FORWARD = {("transformers.models.falcon.modeling_falcon", "FalconLinear")}


def is_linear(module: nn.Module) -> bool:
    """Whether `Int8Linear` can stand in for this: an `nn.Linear` itself, a `Conv1D`, or a subclass that is
    known to compute the same."""
    kind = type(module)
    return kind is nn.Linear or is_conv1d(module) or (kind.__module__, kind.__name__) in _SAME_FORWARD


def is_convertible(module: nn.Module) -> bool:
    """Whether there is an int8 form of this kind of module."""
    return is_linear(module) or is_experts(module) or is_embedding(module)


def int8_from(
    source: nn.Module, threshold: Threshold, name: str, outlier_cols: Tensor | None = None
) -> Int8Linear | Int8Experts | Int8Embedding:
    """The int8 form of a float module; biases are shared.

    name: what an error calls it. outlier_cols: int32 `[P]`, the columns of a linear layer that get a second
    weight digit.
    """
    if isinstance(source, nn.Embedding):
        return Int8Embedding.from_embedding(source, f"{name}.weight")
    if is_experts(source):
        return Int8Experts.from_experts(source, threshold, name)
    kind = Int8Conv1D if is_conv1d(source) else Int8Linear
    bias = cast("nn.Parameter | None", source.bias)
    new = kind.from_weight(weight_as_linear(source), bias, threshold, f"{name}.weight", outlier_cols)
    return new.train(source.training)


def empty_like(
    source: nn.Module, threshold: Threshold, outliers: int = 0
) -> Int8Linear | Int8Experts | Int8Embedding:
    """The int8 form of a float module on the meta device, for a loader to fill.

    outliers: columns of a linear layer that have a second weight digit.
    """
    if isinstance(source, nn.Embedding):
        return Int8Embedding.empty_like(source)
    if is_experts(source):
        return Int8Experts.empty_like(source, threshold)
    rows, features = weight_as_linear(source).shape
    bias = cast("Tensor | None", source.bias)
    kind = Int8Conv1D if is_conv1d(source) else Int8Linear
    dtype = None if bias is None else bias.dtype
    new = kind(features, rows, bias is not None, "meta", dtype, threshold)
    if outliers:
        new.outlier_cols = torch.empty(outliers, dtype=torch.int32, device="meta")
        new.weight_low = torch.empty((rows, outliers), dtype=torch.int8, device="meta")
    return new.train(source.training)
