"""How far int8 weights are from the exact weights that an adapter was merged into them to make."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmint8.errors import QuantizationError
from llmint8.nn import Int8Linear

#: Where a merged layer keeps its `MergeError`: on the `Int8Linear`, since the adapter's layer goes.
_ATTRIBUTE = "merge_error"


@dataclass(frozen=True)
class MergeError:
    """One merged layer, measured against W + ΔW in float32; each norm is Frobenius.

    weight: the norm of W + ΔW. change: the norm of ΔW. error: the norm of what rounding to int8 added.
    largest: its largest magnitude in one weight.
    """

    adapters: tuple[str, ...]
    weight: float
    change: float
    error: float
    largest: float

    @property
    def relative(self) -> float:
        """`error / weight`; 0 for a zero weight."""
        return self.error / self.weight if self.weight else 0.0

    @property
    def of_change(self) -> float:
        """`error / change`: at 1 the rounding is as large as what the adapter changed."""
        return self.error / self.change if self.change else math.inf if self.error else 0.0

    def __str__(self) -> str:
        return (
            f"{self.relative:.3%} of the weight, {self.of_change:.1%} of the change, "
            f"at most {self.largest:.2g} in one weight"
        )


@dataclass(frozen=True)
class MergeReport:
    """Every merged layer by its name, and all of them together."""

    layers: dict[str, MergeError]

    @property
    def total(self) -> MergeError:
        """All layers as one weight."""
        errors = self.layers.values()
        names = dict.fromkeys(name for error in errors for name in error.adapters)
        return MergeError(
            tuple(names),
            _norm(e.weight for e in errors),
            _norm(e.change for e in errors),
            _norm(e.error for e in errors),
            max(e.largest for e in errors),
        )

    def __str__(self) -> str:
        lines = [f"{name}: {error}" for name, error in self.layers.items()]
        return "\n".join([*lines, f"all {len(lines)} layers: {self.total}"])


def measure(adapters: Iterable[str], original: Tensor, merged: Tensor, rounded: Tensor) -> MergeError:
    """Compare float weights `[N, K]`: before the merge, exactly merged, and merged as int8 holds them."""
    error = rounded - merged
    return MergeError(
        tuple(adapters),
        float(torch.linalg.vector_norm(merged)),
        float(torch.linalg.vector_norm(merged - original)),
        float(torch.linalg.vector_norm(error)),
        float(error.abs().max()) if error.numel() else 0.0,
    )


def set_merge_error(layer: Int8Linear, error: MergeError | None) -> None:
    """Remember the error of the weight that the layer now holds; None once it holds the original again."""
    setattr(layer, _ATTRIBUTE, error)


def merge_report(model: nn.Module) -> MergeReport:
    """What merging adapters into the int8 layers of a model cost, layer by layer.

    model: a model with merged adapters, or the one that `merge_and_unload()` returned.
    Raises QuantizationError if no adapter is merged.
    """
    found = ((name, getattr(module, _ATTRIBUTE, None)) for name, module in model.named_modules())
    layers = {name.removesuffix(".base_layer"): error for name, error in found if error is not None}
    if not layers:
        raise QuantizationError("no adapter is merged into an int8 layer: call merge_and_unload() first")
    return MergeReport(layers)


def _norm(norms: Iterable[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms))
