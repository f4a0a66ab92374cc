"""How fast layers and a whole model are on a GPU, after a look whether their bits are right."""

from llmint8.bench.gpu.checks import capture_graph, check_layers, check_replays
from llmint8.bench.gpu.decode import Decoding, Llama, time_decoding
from llmint8.bench.gpu.layers import run_gpu_benchmark
from llmint8.bench.gpu.timing import GpuTimer

__all__ = [
    "Decoding",
    "GpuTimer",
    "Llama",
    "capture_graph",
    "check_layers",
    "check_replays",
    "run_gpu_benchmark",
    "time_decoding",
]
