"""`quantize_rows(x, threshold) -> (q, row_scale)`: activations to integers, one scale per row."""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.ops.library import define
from llmint8.reference.rowwise import check_rows


def _fake(x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - the schema's argument
    check_rows(x)
    return x.new_empty(x.shape, dtype=torch.int16), x.new_empty(x.shape[:1], dtype=torch.float32)


quantize_rows = define(
    "quantize_rows", "(Tensor x, float threshold) -> (Tensor, Tensor)", reference.quantize_rows, _fake
)
