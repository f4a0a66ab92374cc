"""The threshold of a module that multiplies in int8: what its users set, and the code that operators take."""

from __future__ import annotations

from typing import ClassVar

from llmint8.config import Threshold, check_threshold, threshold_code
from llmint8.numerics import AUTO_CODE


class HasThreshold:
    """Gives a module the attribute `threshold`: 0, t > 0 or "auto", see `Int8Config`."""

    _threshold_code: float
    #: How often any module's was set: who remembers this number need not look at every module.
    times_set: ClassVar[int] = 0

    @property
    def threshold(self) -> Threshold:
        """What counts as an outlier: 0 (nothing), `|x| >= t`, or "auto"."""
        return "auto" if self._threshold_code == AUTO_CODE else self._threshold_code

    @threshold.setter
    def threshold(self, value: Threshold) -> None:
        self._threshold_code = threshold_code(check_threshold(value))
        HasThreshold.times_set += 1
