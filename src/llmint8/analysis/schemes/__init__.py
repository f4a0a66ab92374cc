"""Ways to compute a linear layer in 8 bits, emulated on any float model, to be compared on a text."""

from llmint8.analysis.schemes.apply import Usage, applied, linear_layers
from llmint8.analysis.schemes.compare import CROWDED, Comparison, compare_schemes
from llmint8.analysis.schemes.scheme import Layer, Scheme
from llmint8.analysis.schemes.smoothquant import SmoothQuant, column_maxima
from llmint8.analysis.schemes.table import NAMES, check_names, schemes_named

__all__ = [
    "CROWDED",
    "NAMES",
    "Comparison",
    "Layer",
    "Scheme",
    "SmoothQuant",
    "Usage",
    "applied",
    "check_names",
    "column_maxima",
    "compare_schemes",
    "linear_layers",
    "schemes_named",
]
