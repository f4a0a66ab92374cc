"""Ratios, means and shares follow from the times."""

from __future__ import annotations

import json

import pytest

from llmint8.bench import Benchmark, Limits, Point, geometric_mean

SECONDS = {"llmint8 6.0": 2.0, "llmint8 0": 1.0, "float32": 8.0, "bfloat16": 6.0, "float16": 16.0}
LIMITS = Limits(bytes_per_second=100.0, operations_per_second=1000.0)


def test_ratios():
    point = Point(3, 5, 1, SECONDS)
    assert point.ratio("float32") == 4.0
    assert point.ratio("llmint8 6.0", "llmint8 0") == 2.0
    assert point.ratio("torchao") is None
    assert point.float_ratio() == 3.0


def test_geometric_mean_leaves_out_what_is_not_there():
    assert geometric_mean([2.0, None, 8.0]) == pytest.approx(4.0, rel=1e-15)
    assert geometric_mean([None]) is None


@pytest.mark.parametrize(
    ("m", "seconds", "binds"), [(1, 1.0, "memory"), (5, 1.0, "memory"), (6, 1.2, "int8"), (50, 10.0, "int8")]
)
def test_the_limit_that_binds(m, seconds, binds):
    assert LIMITS.seconds(10, 10, m) == (seconds, binds)
    benchmark = Benchmark({}, LIMITS, [Point(10, 10, m, SECONDS)])
    assert benchmark.limit_share(benchmark.points[0]) == (seconds / 2, binds)


def test_memory_as_fast_as_it_was_at_the_point():
    slow = Point(10, 10, 5, SECONDS, bytes_per_second=50.0)
    assert Benchmark({}, LIMITS, [slow]).limit_share(slow) == (1.0, "memory")


def test_the_better_measurement_of_a_limit_counts():
    assert Limits(1.0, 4.0).best(Limits(2.0, 3.0)) == Limits(2.0, 4.0)


def test_names_keep_their_order_and_count_what_failed():
    points = [Point(1, 1, 1, {"a": 1.0, "c": 1.0}), Point(1, 1, 2, {"a": 1.0}, {"b": "why"})]
    assert Benchmark({}, LIMITS, points).names() == ["a", "c", "b"]


def test_as_json_everything_is_there():
    point = Point(10, 20, 3, SECONDS, {"torchao": "TypeError: no"}, extra_bytes=77, bytes_per_second=50.0)
    given = Benchmark({"cpu": "x"}, LIMITS, [point]).to_dict()
    assert json.loads(json.dumps(given)) == {
        "environment": {"cpu": "x"},
        "limits": {"bytes_per_second": 100.0, "int8_operations_per_second": 1000.0},
        "points": [
            {
                "k": 10,
                "n": 20,
                "m": 3,
                "seconds": SECONDS,
                "failures": {"torchao": "TypeError: no"},
                "limit_seconds": 4.0,
                "limit": "memory",
                "bytes_per_second": 50.0,
                "extra_bytes": 77,
                "extra_bytes_bound": 4 * (30 + 60) + 2**20,
            }
        ],
    }
