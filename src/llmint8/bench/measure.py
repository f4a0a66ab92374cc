"""The whole measurement: limits, every layer with every number of rows, memory, limits again."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llmint8 import backends
from llmint8.bench import peers
from llmint8.bench.candidates import Layer
from llmint8.bench.limits import MemoryReader, measure_limits
from llmint8.bench.memory import extra_memory
from llmint8.bench.result import Benchmark, Point
from llmint8.bench.timing import CACHES, take_turns
from llmint8.errors import LLMInt8Error

#: Takes turns with the candidates: shared machines give now more of memory's speed, now less.
_READING = "memory"


def run_benchmark(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    rounds: int,
    budget: float,
    peak_size: int,
    step: Callable[[int, int], None],
) -> Benchmark:
    """Measure layers of K inputs and N outputs, `shapes`, with M rows each.

    rounds, budget: see `take_turns`. peak_size: of the square product that gives the int8 limit.
    step: called with (done, total) as the work moves on.
    """
    total = len(shapes) * len(rows) + 3
    limits = measure_limits(size=peak_size)
    reader = MemoryReader(CACHES)
    step(1, total)
    points: list[Point] = []
    for k, n in shapes:
        layer = Layer(k, n)
        for m in rows:
            with torch.inference_mode():
                reading, nbytes = reader.candidate(k * n)
                seconds, failures = take_turns({**layer.candidates(m), _READING: reading}, rounds, budget)
            speed = nbytes / seconds.pop(_READING)
            points.append(Point(k, n, m, seconds, {**layer.failures, **failures}, bytes_per_second=speed))
            step(1 + len(points), total)
    about = environment()
    try:
        extra = extra_memory([(point.k, point.n, point.m) for point in points])
        points = [replace(p, extra_bytes=nbytes) for p, nbytes in zip(points, extra, strict=True)]
    except LLMInt8Error as error:  # no reason to throw the timings away
        about["memory_not_measured"] = str(error)
    step(total - 1, total)
    limits = limits.best(measure_limits(size=peak_size))
    step(total, total)
    return Benchmark(about, limits, points)


def environment() -> dict[str, Any]:
    """CPU, threads, versions, and the kernels that run."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": next(status.name for status in backends.status() if status.active),
        "python": platform.python_version(),
        **{name: version(name) for name in ("llmint8", "torch", *peers.installed())},
    }
