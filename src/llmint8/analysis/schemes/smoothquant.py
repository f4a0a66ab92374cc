"""SmoothQuant: part of the activations' range is moved into the weights, by column, before both are rounded.

Where it differs from the paper: each layer has factors of its own, also where no norm comes before it that
could absorb them; activations are rounded per token and weights per output feature, the finest it offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from llmint8.analysis.evaluation import split_windows
from llmint8.analysis.schemes.rounding import absmax
from llmint8.analysis.schemes.scheme import SCALE_BYTES, Layer, Scheme, product
from llmint8.errors import InputError

#: α: the share of the range that moves, as the paper recommends for most models.
MIGRATION_STRENGTH = 0.5


class SmoothQuant(Scheme):
    """`(x / s)(s W)ᵀ` in int8 with `s_k = max|x_k|^α / max|W_k|^(1 − α)`.

    maxima: by layer, float32 `[K]`, the largest magnitude of each column in a calibration text, see
    `column_maxima`.
    """

    name = "smoothquant"
    title = "SmoothQuant, α = 0.5"
    source = "Xiao et al., SmoothQuant, arXiv 2211.10438, equation 4"
    fault = "wants a calibration text, and values beyond those seen there are coarse again"

    def __init__(self, maxima: Mapping[str, Tensor]) -> None:
        self._maxima = maxima

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Nothing is kept. Raises InputError for a layer that the calibration did not reach."""
        if layer.name not in self._maxima:
            raise InputError(f"the calibration text did not reach {layer.name}; give another text")
        weight = layer.weight.float()
        seen, held = self._maxima[layer.name].to(x.device), weight.abs().amax(dim=0)
        factor = seen**MIGRATION_STRENGTH / held ** (1 - MIGRATION_STRENGTH)
        # A column that is zero on either side has nothing to migrate.
        factor = torch.where((seen > 0) & (held > 0), factor, torch.ones_like(factor))
        y = product(absmax(x.float() / factor, True), absmax(weight * factor, True), layer.bias)
        return y, None

    def stored_bytes(self, layer: Layer, kept_columns: int) -> int:
        """Codes, scales and the factors."""
        return super().stored_bytes(layer, kept_columns) + layer.weight.shape[1] * SCALE_BYTES


def column_maxima(
    model: nn.Module,
    names: Iterable[str],
    run: Callable[[Tensor], object],
    ids: Tensor,
    context: int,
) -> dict[str, Tensor]:
    """The largest magnitude of each input column of the layers `names`, over a text.

    run: calls the model with token ids int64 `[1, L]`. ids: int64 `[T]`, cut into windows of `context`.

    Returns float32 `[K]` by name, for the layers that were called. Hooks are removed afterwards.
    """
    maxima: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest = inputs[0].detach().flatten(0, -2).float().abs().amax(dim=0)
            maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

        return record

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for window in split_windows(ids, context):
            run(window)
    finally:
        for handle in handles:
            handle.remove()
    return maxima
