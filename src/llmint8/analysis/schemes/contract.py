"""This library's own arithmetic: the reference itself, so that the scheme cannot differ from the kernels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from llmint8 import reference
from llmint8.analysis.schemes.calibration import ColumnStatistics, seen_in
from llmint8.analysis.schemes.scheme import SCALE_BYTES, Layer, Scheme
from llmint8.config import Threshold, threshold_code
from llmint8.numerics import AUTO_CODE, CODE_MAX

_FAULTS: dict[Threshold, str] = {
    0.0: "one large value makes all others of its row coarse",
    "auto": "the integers of a row are as coarse as its largest normal value wants; weights keep 8 bits",
}


class Contract(Scheme):
    """docs/numerics.md at a threshold: outliers of each row as two int8 digits, exact integer sums."""

    source = "docs/numerics.md"

    def __init__(self, threshold: Threshold) -> None:
        shown = threshold if isinstance(threshold, str) else f"{threshold:g}"
        self.name = f"llmint8-{shown}"
        self.title = f"llmint8, threshold {shown}"
        self.fault = _FAULTS.get(
            threshold, "a fixed magnitude fits some models: where values are small, nothing is an outlier"
        )
        self._code = threshold_code(threshold)

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Outlier values are kept, each for itself: those that need the second digit."""
        codes, scales = reference.quantize_weight(layer.weight, layer.name)
        y = reference.linear(x, codes, scales, layer.bias, self._code)
        q, _ = reference.quantize_rows(x, self._code)
        return y, q.abs() > CODE_MAX


class SecondDigit(Scheme):
    """The automatic rule with 16-bit weights in a few columns: those most often outliers in a short text.

    calibration: by layer, what `calibrate` saw.
    """

    name = "llmint8-auto-int16"
    title = "llmint8, auto, int16 outlier weights"
    source = "docs/numerics.md, second digit of the weights, in at most 2 % of a layer's columns"
    fault = "wants one pass over a short text; columns that become outliers elsewhere have 8-bit weights"

    def __init__(self, calibration: Mapping[str, ColumnStatistics]) -> None:
        self._calibration = calibration

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Outlier values are kept, each for itself. Raises InputError for a layer without calibration."""
        codes, scales = reference.quantize_weight(layer.weight, layer.name)
        columns = self._columns(layer).to(x.device)
        low = reference.quantize_low_digit(layer.weight, codes, scales, columns)
        y = reference.linear(x, codes, scales, layer.bias, AUTO_CODE, columns, low)
        q, _ = reference.quantize_rows(x, AUTO_CODE)
        return y, q.abs() > CODE_MAX

    def stored_bytes(self, layer: Layer, kept_columns: int) -> int:
        """Codes, scales, second digits and the numbers of their columns."""
        columns = len(self._columns(layer))
        return super().stored_bytes(layer, kept_columns) + columns * (layer.weight.shape[0] + SCALE_BYTES)

    def _columns(self, layer: Layer) -> Tensor:
        """Columns int32 `[P]`, ascending; of equally frequent ones the first."""
        return reference.outlier_columns(seen_in(self._calibration, layer.name).outliers)
