"""Timers of a GPU: the second cache flushed, weights rotated, in a CUDA graph or call by call."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmint8.bench.limits import Limits
from llmint8.bench.timing import Candidate
from llmint8.numerics import CODE_MAX

#: Calls that are timed together, each on other weights: a single one would be lost in the clock's steps.
CALLS = 10
#: So many times the second cache is written to flush it, and by weights that rotate.
_FLUSHES = 2
_WARM_UPS = 3


class GpuTimer:
    """Times calls on the current GPU, by the GPU's clock."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        #: Bytes that outgrow the second cache.
        self.beyond: int = _FLUSHES * properties.L2_cache_size
        self._flush = torch.empty(self.beyond, dtype=torch.int8, device="cuda")
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one run, from the moment at which it may start: what the host does meanwhile counts."""
        self._flush.zero_()
        torch.cuda.synchronize()
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        milliseconds: float = self._start.elapsed_time(self._end)
        return milliseconds / 1e3

    def eager(self, candidate: Candidate) -> Callable[[], float]:
        """A call among others that the host makes one after the other."""
        for _ in range(_WARM_UPS):
            candidate.prepare()()

        def seconds() -> float:
            runs = [candidate.prepare() for _ in range(CALLS)]
            return self.seconds(lambda: [run() for run in runs]) / CALLS

        return seconds

    def graph(self, candidate: Candidate) -> Callable[[], float]:
        """A call among others that a CUDA graph makes. Raises what torch does for what cannot be captured."""
        runs = [candidate.prepare() for _ in range(CALLS)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for run in runs[:_WARM_UPS]:
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for run in runs:
                run()
        return lambda: self.seconds(graph.replay) / CALLS

    def limits(self, size: int, passes: int = 5) -> Limits:
        """How fast memory is copied, reading and writing counted, and int8 products of a square size run."""
        source = torch.zeros(max(4 * self.beyond, 1 << 30), dtype=torch.int8, device="cuda")
        target = torch.empty_like(source)
        # Drawn on the CPU: a capture that failed leaves a GPU's generator unusable.
        codes = torch.randint(-CODE_MAX, CODE_MAX + 1, (size, size), dtype=torch.int8).cuda()
        copying = min(self.seconds(lambda: target.copy_(source)) for _ in range(passes))
        product = min(self.seconds(lambda: torch._int_mm(codes, codes.t())) for _ in range(passes))
        return Limits(2 * source.nbytes / copying, 2 * size**3 / product)
