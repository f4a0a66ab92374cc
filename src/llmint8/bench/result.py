"""What a benchmark found, and what follows from it: ratios, means, and shares of the limits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from llmint8.bench.candidates import FLOATS, OURS
from llmint8.bench.limits import Limits
from llmint8.bench.memory import bound


def headline(environment: dict[str, Any]) -> str:
    """The machine, and what runs on it, in a line."""
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    where = environment["gpu"] if "gpu" in environment else f"{environment['cpu']}, {threads}"
    return f"{where}, torch {environment['torch']}, kernels {environment['kernels']}"


@dataclass(frozen=True)
class Point:
    """One layer and number of rows.

    seconds: the median of each candidate. failures: why another one has none.
    extra_bytes: peak memory of one call of ours beyond what lay there; None if it was not measured.
    bytes_per_second: at which memory was read in turns with the candidates; None if that was not measured.
    """

    k: int
    n: int
    m: int
    seconds: dict[str, float]
    failures: dict[str, str] = field(default_factory=dict)
    extra_bytes: int | None = None
    bytes_per_second: float | None = None

    def ratio(self, name: str, base: str = OURS) -> float | None:
        """Time of a candidate over that of another: above 1, `base` is faster. None without a time."""
        return self.seconds[name] / self.seconds[base] if name in self.seconds else None

    def float_ratio(self) -> float:
        """Time of the fastest of torch's three float types over ours."""
        return min(self.seconds[name] for name in FLOATS) / self.seconds[OURS]

    def half_ratio(self) -> float:
        """The same of its two types of 16 bits."""
        return min(self.seconds["bfloat16"], self.seconds["float16"]) / self.seconds[OURS]


@dataclass(frozen=True)
class Benchmark:
    """Points in the order of measurement; environment: what a reader needs to repeat them."""

    environment: dict[str, Any]
    limits: Limits
    points: list[Point]

    def names(self) -> list[str]:
        """Every candidate, whether it ran or not, in the order of measurement."""
        return list(dict.fromkeys(name for p in self.points for name in (*p.seconds, *p.failures)))

    def limit_share(self, point: Point) -> tuple[float, str]:
        """The least time that the binding limit allows over ours, and which one binds: "memory" or "int8"."""
        seconds, binds = self._limit(point)
        return seconds / point.seconds[OURS], binds

    def _limit(self, point: Point) -> tuple[float, str]:
        limits = self.limits
        if point.bytes_per_second is not None:
            limits = replace(limits, bytes_per_second=point.bytes_per_second)
        return limits.seconds(point.k, point.n, point.m)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; times in seconds, sizes in bytes."""
        return {
            "environment": self.environment,
            "limits": {
                "bytes_per_second": self.limits.bytes_per_second,
                "int8_operations_per_second": self.limits.operations_per_second,
            },
            "points": [self._point(point) for point in self.points],
        }

    def _point(self, point: Point) -> dict[str, Any]:
        seconds, binds = self._limit(point)
        return {
            "k": point.k,
            "n": point.n,
            "m": point.m,
            "seconds": point.seconds,
            "failures": point.failures,
            "limit_seconds": seconds,
            "limit": binds,
            "bytes_per_second": point.bytes_per_second,
            "extra_bytes": point.extra_bytes,
            "extra_bytes_bound": bound(point.k, point.n, point.m),
        }


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Of the ratios that exist; None if none does."""
    logarithms = [math.log(ratio) for ratio in ratios if ratio is not None]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None
