"""Outlier columns apart: the paper's decomposition, and what bitsandbytes makes of it.

A column of the activations is an outlier if any row of the batch holds a magnitude from the threshold on, so
a row's result depends on the rows that share its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8.analysis.schemes.rounding import Rounding, absmax
from llmint8.analysis.schemes.scheme import HALF_BYTES, Layer, Scheme, product
from llmint8.analysis.schemes.uniform import PAPER, range_bytes
from llmint8.numerics import DEFAULT_THRESHOLD


def outlier_columns(x: Tensor) -> Tensor:
    """Columns with any magnitude of 6.0 or more: float `[T, K]` to bool `[K]`."""
    return (x.float().abs() >= DEFAULT_THRESHOLD).any(dim=0)


def as_half(values: Tensor) -> Tensor:
    """Rounded to float16, as float32; what lies beyond float16 saturates."""
    limit = torch.finfo(torch.float16).max
    return values.float().clamp(-limit, limit).half().float()


class Decomposed(Scheme):
    """Outlier columns in float16 with float16 weights, the rest in int8 (equation 8 of the paper)."""

    source = f"{PAPER}, Table 1 and section 3.2, threshold 6.0"

    def __init__(self, name: str, title: str, fault: str, rounding: Rounding, by_output: bool) -> None:
        self.name, self.title, self.fault = name, title, fault
        self._rounding, self._by_output = rounding, by_output

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Outlier columns of the batch are kept. The ranges of a weight are those of all its columns."""
        columns = outlier_columns(x)
        rest = self._rounding(x.float().masked_fill(columns, 0), True)
        y = product(rest, self._rounding(layer.weight.float(), self._by_output), layer.bias)
        outliers = product(as_half(x[:, columns]), as_half(layer.weight[:, columns]), None)
        return y + outliers, columns[None]

    def stored_bytes(self, layer: Layer, kept_columns: int) -> int:
        """Codes, ranges, and float16 weights for each column that was an outlier."""
        rows = layer.weight.shape[0]
        ranges = range_bytes(layer, self._rounding, self._by_output)
        return layer.weight.numel() + ranges + rows * kept_columns * HALF_BYTES


class BitsAndBytes(Scheme):
    """The same without float16 weights: outlier columns are multiplied with de-quantised int8 weights."""

    name = "bitsandbytes"
    title = "bitsandbytes' rule, 6.0"
    source = "Linear8bitLt of bitsandbytes 0.50 in evaluation mode, threshold 6.0"
    fault = "outliers meet 8-bit weights; a row depends on its batch; one large value keeps a whole column"

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Outlier columns of the batch are kept.

        The scale of a row is that of its values below 6.0, those in outlier columns included.
        """
        half = as_half(x)
        columns = outlier_columns(half)
        weight = absmax(layer.weight.float(), True)
        small = absmax(half.masked_fill(half.abs() >= DEFAULT_THRESHOLD, 0), True)
        y = product(small.masked_fill(columns, 0), weight, layer.bias)
        return y + product(half[:, columns], as_half(weight[:, columns]), None), columns[None]
