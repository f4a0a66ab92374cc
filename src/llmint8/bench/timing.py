"""Fair timings: candidates take turns in one process, on rotated weights, and the medians are compared."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

T = TypeVar("T")
#: From a candidate to what times one call of it and returns seconds; making it may run the candidate.
Timer = Callable[["Candidate"], Callable[[], float]]
#: Bytes that outgrow the caches of a CPU.
CACHES = 128 << 20
#: Timings of a candidate, however long they take.
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer.

    prepare: picks the weights of the next call, outside the timed part; what it returns is timed.
    may_fail: another library's, which may not know a shape; its error becomes a remark, not the end.
    """

    prepare: Callable[[], Callable[[], object]]
    may_fail: bool = False


def rotate(items: Sequence[T]) -> Callable[[], T]:
    """A function that returns the items in turn: weights that are used again at once sit in the cache."""
    turns: Iterator[T] = cycle(items)
    return lambda: next(turns)


def copies(nbytes: int, beyond: int = CACHES, most: int = 64) -> int:
    """How many copies of a weight it takes to outgrow the caches; at least 2."""
    return min(max(2, -(-beyond // max(nbytes, 1))), most)


def by_clock(candidate: Candidate) -> Callable[[], float]:
    """The timer of a CPU: one call, after one that does not count."""
    candidate.prepare()()

    def seconds() -> float:
        run = candidate.prepare()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


def take_turns(
    candidates: Mapping[str, Candidate], rounds: int, budget: float, timer: Timer = by_clock
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each candidate, and the reasons of those that could not run.

    rounds: timings of each. budget: a candidate that has used as many seconds sits out after three of them.
    The order is drawn anew each round, so that nobody always runs in the wake of the same other one.
    """
    times: dict[str, list[float]] = {}
    timed: dict[str, Callable[[], float]] = {}
    failures: dict[str, str] = {}
    for name, candidate in candidates.items():
        try:
            timed[name] = timer(candidate)
        except Exception as error:  # another library's: it raises what it likes
            if not candidate.may_fail:
                raise
            failures[name] = one_line(error)
        else:
            times[name] = []
    order, shuffle = list(times), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            taken = times[name]
            if len(taken) >= LEAST_ROUNDS and sum(taken) > budget:
                continue
            taken.append(timed[name]())
    return {name: statistics.median(taken) for name, taken in times.items()}, failures


def one_line(error: Exception) -> str:
    """The first line of an error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
