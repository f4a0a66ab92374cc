"""This library's own arithmetic: the reference itself, so that the scheme cannot differ from the kernels."""

from __future__ import annotations

from torch import Tensor

from llmint8 import reference
from llmint8.analysis.schemes.scheme import Layer, Scheme
from llmint8.config import Threshold, threshold_code
from llmint8.numerics import CODE_MAX

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
