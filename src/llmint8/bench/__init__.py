"""How fast one linear layer is here: ours, torch's, other libraries', and what the machine allows."""

from llmint8.bench.candidates import Layer
from llmint8.bench.limits import Limits, measure_limits
from llmint8.bench.measure import run_benchmark
from llmint8.bench.memory import extra_memory
from llmint8.bench.picture import draw
from llmint8.bench.result import Benchmark, Point, geometric_mean, headline

__all__ = [
    "Benchmark",
    "Layer",
    "Limits",
    "Point",
    "draw",
    "extra_memory",
    "geometric_mean",
    "headline",
    "measure_limits",
    "run_benchmark",
]
