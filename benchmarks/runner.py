"""Fair timings: candidates take turns in one process, on rotated inputs, and the medians are compared."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import torch

import llmint8

T = TypeVar("T")


def rotate(items: Sequence[T]) -> Callable[[], T]:
    """A function that returns the items in turn: weights that are used again at once sit in the cache."""
    turns: Iterator[T] = cycle(items)
    return lambda: next(turns)


def copies(nbytes: int, beyond: int = 128 << 20, most: int = 64) -> int:
    """How many copies of a weight it takes to outgrow the caches."""
    return min(max(2, -(-beyond // max(nbytes, 1))), most)


def interleave(
    candidates: dict[str, Callable[[], object]], rounds: int = 15, budget: float = 1.0
) -> dict[str, float]:
    """Median seconds of each candidate, measured in turns (A B C A B C …) after one warm-up each.

    A candidate that has used `budget` seconds sits out after three rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            if len(times[name]) >= 3 and sum(times[name]) > budget:
                continue
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def environment() -> dict[str, Any]:
    """What a reader needs to know to repeat a measurement."""
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
        "torch": torch.__version__,
        "llmint8": llmint8.__version__,
        "kernels": next(status.name for status in llmint8.backends.status() if status.active),
    }
