"""What the machine allows, measured as everything else is: in this process, with torch's threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmint8 import memory
from llmint8.bench.timing import Candidate, rotate
from llmint8.nn import Int8Linear
from llmint8.numerics import CODE_MAX

#: Bytes that take long enough to read that a call of torch is little beside it.
_LEAST_PIECE = 16 << 20


@dataclass(frozen=True)
class Limits:
    """bytes_per_second: at which memory is read.
    operations_per_second: of int8 products, 2·M·N·K for a matrix product.
    """

    bytes_per_second: float
    operations_per_second: float

    def seconds(self, k: int, n: int, m: float) -> tuple[float, str]:
        """The least time of a layer, and what sets it: "memory" for its K·N weights, or "int8" products."""
        reading = k * n / self.bytes_per_second
        products = 2 * k * n * m / self.operations_per_second
        return (reading, "memory") if reading >= products else (products, "int8")

    def best(self, other: Limits) -> Limits:
        """The higher of each: whatever disturbs a measurement only lowers it."""
        return Limits(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.operations_per_second, other.operations_per_second),
        )


def measure_limits(nbytes: int = 512 << 20, size: int = 4096, passes: int = 5) -> Limits:
    """The best of several passes.

    nbytes: read from memory, far more than the caches hold. size: of the square int8 product.
    """
    with torch.inference_mode():
        return Limits(MemoryReader(nbytes).bytes_per_second(passes), _int8_peak(size, passes))


class MemoryReader:
    """Reads memory as weights lie in it.

    nbytes: far more than the caches hold.
    """

    def __init__(self, nbytes: int) -> None:
        # Written, or every page would be the zero page.
        self._words = memory.zeros((nbytes // 8,), torch.int64).fill_(1)

    def bytes_per_second(self, passes: int) -> float:
        """The best of several passes."""
        return self._words.nbytes / _fastest(_reductions(self._words), passes)

    def candidate(self, nbytes: int) -> tuple[Candidate, int]:
        """What reads about so many bytes in turns with others, and how many it reads."""
        words = min(max(nbytes, _LEAST_PIECE) // 8, len(self._words) // 2)
        seconds = [_seconds(run) for run in _reductions(self._words)]
        faster = seconds.index(min(seconds))
        pieces = [piece for piece in self._words.split(words) if len(piece) == words]
        return Candidate(rotate([_reductions(piece)[faster] for piece in pieces])), 8 * words


def _reductions(words: Tensor) -> list[Callable[[], object]]:
    """The two that torch reads with at the speed of memory; which is faster depends on the CPU."""
    return [words.sum, words.view(torch.int8).max]


def _int8_peak(size: int, passes: int) -> float:
    codes = torch.randint(-CODE_MAX, CODE_MAX + 1, (size, size), dtype=torch.int8)
    x = torch.randn(size, size, dtype=torch.bfloat16)
    module = Int8Linear.from_weight(torch.randn(size, size), threshold=0.0)
    runs: list[Callable[[], object]] = [lambda: module(x), lambda: torch._int_mm(codes, module.weight.t())]
    return 2 * size**3 / _fastest(runs, passes)


def _fastest(runs: Sequence[Callable[[], object]], passes: int) -> float:
    """Seconds of the fastest pass of the fastest run; one that is hopeless after its warm-up gets no pass."""
    warm_ups = [_seconds(run) for run in runs]
    hopeful = (run for run, first in zip(runs, warm_ups, strict=True) if first < 4 * min(warm_ups))
    return min(_seconds(run) for run in hopeful for _ in range(passes))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
