"""One linear layer on a GPU: every candidate in a CUDA graph, and call by call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llmint8.bench.candidates import Layer
from llmint8.bench.gpu.timing import GpuTimer
from llmint8.bench.measure import environment
from llmint8.bench.result import Benchmark, Point
from llmint8.bench.timing import take_turns


def run_gpu_benchmark(
    timer: GpuTimer,
    device: str,
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    rounds: int,
    budget: float,
    peak_size: int,
    step: Callable[[int, int], None],
) -> dict[str, Benchmark]:
    """Layers of K inputs and N outputs, `shapes`, with M rows each, by how their calls are made.

    rounds, budget: see `take_turns`. peak_size: of the square product that gives the int8 limit. step: called
    with (done, total) as the work moves on. Returns "CUDA graph" and "eager".
    """
    ways = {"CUDA graph": timer.graph, "eager": timer.eager}
    points: dict[str, list[Point]] = {way: [] for way in ways}
    limits = timer.limits(peak_size)
    total = len(shapes) * len(rows)
    for k, n in shapes:
        layer = Layer(k, n, device, timer.beyond)
        for m in rows:
            candidates = layer.candidates(m)
            for way, timed in ways.items():
                with torch.inference_mode():
                    seconds, failures = take_turns(candidates, rounds, budget, timed)
                points[way].append(Point(k, n, m, seconds, {**layer.failures, **failures}))
            step(len(points["eager"]), total)
    limits = limits.best(timer.limits(peak_size))
    about = environment()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else device
    return {
        way: Benchmark({**about, "gpu": f"{name}, {way}", "kernels": "triton"}, limits, found)
        for way, found in points.items()
    }
