"""What a text shows of the columns of activations: how large they are, and how often they are outliers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmint8 import reference
from llmint8.analysis.schemes.apply import applied
from llmint8.analysis.schemes.scheme import Layer
from llmint8.analysis.schemes.uniform import Float
from llmint8.analysis.windows import split_windows
from llmint8.errors import InputError
from llmint8.numerics import AUTO_CODE, CODE_MAX


@dataclass(frozen=True)
class ColumnStatistics:
    """The input of one layer over a text.

    largest: float32 `[K]`, the largest magnitude of each column. outliers: int64 `[K]`, rows in which it was
    an outlier by the automatic rule.
    """

    largest: Tensor
    outliers: Tensor

    def __or__(self, other: ColumnStatistics) -> ColumnStatistics:
        return ColumnStatistics(torch.maximum(self.largest, other.largest), self.outliers + other.outliers)


class _Watched(Float):
    """The float model, whose inputs are looked at."""

    def __init__(self) -> None:
        self.seen: dict[str, ColumnStatistics] = {}

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """The float layer; rows of one name are counted together."""
        q, _ = reference.quantize_rows(x, AUTO_CODE)
        seen = ColumnStatistics(x.float().abs().amax(dim=0), (q.abs() > CODE_MAX).sum(dim=0))
        self.seen[layer.name] = self.seen[layer.name] | seen if layer.name in self.seen else seen
        return super().linear(x, layer)


def calibrate(
    model: nn.Module,
    names: Iterable[str],
    run: Callable[[Tensor], object],
    ids: Tensor,
    context: int,
) -> dict[str, ColumnStatistics]:
    """Let a model read a text, and look at the inputs of its layers.

    names: as for `applied`. run: calls the model with token ids int64 `[1, L]`. ids: int64 `[T]`, cut into
        windows of `context`.

    Returns statistics by name, for the layers that were called; those of all experts of a mixture together.
    The model is unchanged afterwards.
    """
    watched = _Watched()
    with applied(model, names, watched):
        for window in split_windows(ids, context):
            run(window)
    return watched.seen


def seen_in(calibration: Mapping[str, ColumnStatistics], name: str) -> ColumnStatistics:
    """The statistics of one layer. Raises InputError if the text did not reach it."""
    if name not in calibration:
        raise InputError(f"the calibration text did not reach {name}; give another text")
    return calibration[name]
