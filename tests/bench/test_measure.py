"""The whole measurement, at sizes that cost nothing."""

from __future__ import annotations

import pytest
import torch

import llmint8
from llmint8 import backends, bench
from llmint8.bench import limits, measure, peers
from llmint8.errors import LLMInt8Error


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench.candidates, "copies", lambda nbytes, beyond: 2)
    monkeypatch.setattr(peers, "installed", list)
    real = limits.measure_limits
    monkeypatch.setattr(measure, "measure_limits", lambda size: real(1 << 16, size, 1))
    monkeypatch.setattr(measure, "MemoryReader", lambda nbytes: limits.MemoryReader(1 << 16))
    monkeypatch.setattr(measure, "extra_memory", lambda points: [10 * m for _, _, m in points])


def test_every_shape_with_every_number_of_rows(tiny):
    steps = []
    found = bench.run_benchmark([(32, 16), (16, 48)], [1, 5], 3, 0.1, 32, lambda *s: steps.append(s))
    assert [(p.k, p.n, p.m) for p in found.points] == [(32, 16, 1), (32, 16, 5), (16, 48, 1), (16, 48, 5)]
    assert [p.extra_bytes for p in found.points] == [10, 50, 10, 50]
    assert steps == [(i, 7) for i in range(1, 8)]
    for point in found.points:
        assert {*point.seconds, *point.failures} == {*found.names()}
        assert {name for name in found.names() if name not in point.seconds} <= {"torch._int_mm"}
        assert all(seconds > 0 for seconds in point.seconds.values())
        assert point.bytes_per_second > 0
    assert found.limits.bytes_per_second > 0
    assert found.limits.operations_per_second > 0


def test_without_a_measurement_of_memory_the_times_remain(tiny, monkeypatch):
    def fails(points):
        raise LLMInt8Error("no such thing here")

    monkeypatch.setattr(measure, "extra_memory", fails)
    found = bench.run_benchmark([(8, 8)], [1], 3, 0.1, 16, lambda *s: None)
    assert found.points[0].extra_bytes is None
    assert found.environment["memory_not_measured"] == "no such thing here"
    assert found.points[0].seconds


def test_the_environment_says_what_ran():
    about = measure.environment()
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__
    assert about["llmint8"] == llmint8.__version__
    assert about["kernels"] in {status.name for status in backends.status() if status.active}


def test_a_hopeless_candidate_for_a_limit_is_not_repeated(monkeypatch):
    ran = []
    seconds = {"fast": iter([1.0, 0.5, 0.75]), "slow": iter([4.0])}

    def seconds_of(run):
        ran.append(run)
        return next(seconds[run])

    monkeypatch.setattr(limits, "_seconds", seconds_of)
    assert limits._fastest(["fast", "slow"], 2) == 0.5
    assert ran == ["fast", "slow", "fast", "fast"]


@pytest.mark.parametrize(
    ("asked", "read"),
    [(1, 16 << 20), (20 << 20, 20 << 20), (100 << 20, 32 << 20)],
    ids=["few", "some", "many"],
)
def test_memory_is_read_in_pieces_that_take_turns(asked, read):
    candidate, nbytes = limits.MemoryReader(64 << 20).candidate(asked)
    pieces = [candidate.prepare().__self__ for _ in range(2)]
    assert nbytes == read
    assert [piece.nbytes for piece in pieces] == [read, read]
    assert pieces[0].data_ptr() != pieces[1].data_ptr()
