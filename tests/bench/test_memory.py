"""Peak memory: what a call touches is seen, also if it is freed again, and a layer keeps its promise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmint8.bench import extra_memory, memory
from llmint8.errors import LLMInt8Error

needs_reset = pytest.mark.skipif(
    not os.access(memory._CLEAR, os.W_OK), reason="this system does not reset a peak"
)
MIB = 1 << 20


@needs_reset
def test_a_known_peak_is_measured_to_half_a_mebibyte():
    """In a process of its own: 20 MiB in two steps, freed, after 50 MiB that were freed before."""
    code = (
        "from llmint8.bench.memory import peak_of\n"
        "def touch(n):\n"
        "    b = bytearray(n)\n"
        "    b[::4096] = bytes(len(b[::4096]))\n"
        "    return b\n"
        "touch(50 << 20)\n"
        "print(peak_of(lambda: (touch(8 << 20), touch(12 << 20))), peak_of(lambda: None))\n"
    )
    env = {**os.environ, **memory._MALLOC}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    peak, nothing = map(int, done.stdout.split())
    assert abs(peak - 20 * MIB) < MIB // 2
    assert nothing < MIB // 2


@needs_reset
def test_each_point_is_measured_and_holds_at_least_its_output():
    points = [(64, 2048, 512), (64, 32, 1), (64, 2048, 512)]
    large, small, again = extra_memory(points)
    output = 512 * 2048 * 2
    assert output - MIB // 4 < large
    assert output - MIB // 4 < again  # no buffer of the first call was at hand
    assert small < MIB


def test_a_system_without_the_measurement_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "absent")
    with pytest.raises(LLMInt8Error, match="only be measured on Linux"):
        extra_memory([(8, 8, 1)])


def test_the_bound_is_four_bytes_a_value_and_a_mebibyte():
    assert memory.bound(10, 20, 3) == 4 * (3 * 10 + 3 * 20) + MIB


@needs_reset
def test_a_process_that_fails_is_an_error_with_its_reason():
    with pytest.raises(LLMInt8Error, match="measures it failed: "):
        extra_memory([(8, -8, 1)])
