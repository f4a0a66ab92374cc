"""What a text shows of the columns of activations: how large they are, and how often they are outliers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmint8 import reference
from llmint8.analysis.evaluation import split_windows
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


def calibrate(
    model: nn.Module,
    names: Iterable[str],
    run: Callable[[Tensor], object],
    ids: Tensor,
    context: int,
) -> dict[str, ColumnStatistics]:
    """Let a model read a text, and watch the inputs of the layers `names`.

    run: calls the model with token ids int64 `[1, L]`. ids: int64 `[T]`, cut into windows of `context`.

    Returns statistics by name, for the layers that were called. Hooks are removed afterwards.
    """
    found: dict[str, ColumnStatistics] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().flatten(0, -2)
            q = reference.quantize_rows(rows, AUTO_CODE)[0]
            seen = ColumnStatistics(rows.float().abs().amax(dim=0), (q.abs() > CODE_MAX).sum(dim=0))
            found[name] = found[name] | seen if name in found else seen

        return record

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for window in split_windows(ids, context):
            run(window)
    finally:
        for handle in handles:
            handle.remove()
    return found


def seen_in(calibration: Mapping[str, ColumnStatistics], name: str) -> ColumnStatistics:
    """The statistics of one layer. Raises InputError if the text did not reach it."""
    if name not in calibration:
        raise InputError(f"the calibration text did not reach {name}; give another text")
    return calibration[name]
