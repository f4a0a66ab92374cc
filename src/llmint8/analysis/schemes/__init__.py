"""Ways to compute a linear layer in 8 bits, emulated on any float model, to be compared on a text."""

from llmint8.analysis.schemes.apply import Usage, applied, linear_layers
from llmint8.analysis.schemes.calibration import ColumnStatistics, calibrate
from llmint8.analysis.schemes.compare import CROWDED, Comparison, compare_schemes
from llmint8.analysis.schemes.scheme import Layer, Scheme
from llmint8.analysis.schemes.table import NAMES, check_names, needs_calibration, schemes_named

__all__ = [
    "CROWDED",
    "NAMES",
    "ColumnStatistics",
    "Comparison",
    "Layer",
    "Scheme",
    "Usage",
    "applied",
    "calibrate",
    "check_names",
    "compare_schemes",
    "linear_layers",
    "needs_calibration",
    "schemes_named",
]
