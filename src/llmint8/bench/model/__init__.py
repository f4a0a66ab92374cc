"""How fast a whole model is here: transformers, other int8 libraries, llama.cpp and this one, in turn."""

from llmint8.bench.model.picture import draw
from llmint8.bench.model.result import Cell, ModelBenchmark, Result, Workload
from llmint8.bench.model.turns import run_model_benchmark

__all__ = ["Cell", "ModelBenchmark", "Result", "Workload", "draw", "run_model_benchmark"]
