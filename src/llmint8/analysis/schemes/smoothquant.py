"""SmoothQuant: part of the activations' range is moved into the weights, by column, before both are rounded.

Where it differs from the paper: each layer has factors of its own, also where no norm comes before it that
could absorb them; activations are rounded per token and weights per output feature, the finest it offers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmint8.analysis.schemes.calibration import ColumnStatistics, seen_in
from llmint8.analysis.schemes.rounding import absmax
from llmint8.analysis.schemes.scheme import SCALE_BYTES, Layer, Scheme, product

#: α: the share of the range that moves, as the paper recommends for most models.
MIGRATION_STRENGTH = 0.5


class SmoothQuant(Scheme):
    """`(x / s)(s W)ᵀ` in int8 with `s_k = max|x_k|^α / max|W_k|^(1 − α)`.

    calibration: by layer, what `calibrate` saw.
    """

    name = "smoothquant"
    title = "SmoothQuant, α = 0.5"
    source = "Xiao et al., SmoothQuant, arXiv 2211.10438, equation 4"
    fault = "wants a calibration text, and values beyond those seen there are coarse again"

    def __init__(self, calibration: Mapping[str, ColumnStatistics]) -> None:
        self._calibration = calibration

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Nothing is kept. Raises InputError for a layer that the calibration did not reach."""
        weight = layer.weight.float()
        seen, held = seen_in(self._calibration, layer.name).largest.to(x.device), weight.abs().amax(dim=0)
        factor = seen**MIGRATION_STRENGTH / held ** (1 - MIGRATION_STRENGTH)
        # A column that is zero on either side has nothing to migrate.
        factor = torch.where((seen > 0) & (held > 0), factor, torch.ones_like(factor))
        y = product(absmax(x.float() / factor, True), absmax(weight * factor, True), layer.bias)
        return y, None

    def stored_bytes(self, layer: Layer, kept_columns: int) -> int:
        """Codes, scales and the factors."""
        return super().stored_bytes(layer, kept_columns) + layer.weight.shape[1] * SCALE_BYTES
