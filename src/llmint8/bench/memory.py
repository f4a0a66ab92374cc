"""The memory that one call of a layer takes beyond what lay there before it: output, scratch, everything.

Measured as the peak of the resident set, which Linux lets a process reset. Each point has a process of its
own, forked from one that has imported torch and computed nothing: no buffer of an earlier call can be reused.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from llmint8.errors import LLMInt8Error
from llmint8.nn import Int8Linear
from llmint8.numerics import CODE_MAX

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
#: glibc: give freed memory back at once, or a call would reuse it unseen.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
_PR_SET_THP_DISABLE = 41


def bound(k: int, n: int, m: int) -> int:
    """Bytes that a call promises to stay within: four for each input and output, and 1 MiB."""
    return 4 * (m * k + m * n) + (1 << 20)


def extra_memory(points: Sequence[tuple[int, int, int]]) -> list[int]:
    """Bytes of the first call of an `Int8Linear` for each (K, N, M), threshold 6.0 and bfloat16 input.

    Raises LLMInt8Error where the system has no such measurement: anything but Linux, or one that forbids it.
    """
    if not os.access(_CLEAR, os.W_OK):
        raise LLMInt8Error(f"{_CLEAR} cannot be written to; a peak can only be measured on Linux")
    code = "from llmint8.bench.memory import main; main()"
    arguments = json.dumps([torch.get_num_threads(), *points])
    done = subprocess.run(
        [sys.executable, "-c", code, arguments],
        env={**os.environ, **_MALLOC},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LLMInt8Error(f"the process that measures it failed: {reason}")
    result: list[int] = json.loads(done.stdout)
    return result


def main() -> None:
    """In the process of its own: points as JSON in, bytes as JSON out."""
    threads, *points = json.loads(sys.argv[1])
    print(json.dumps([_in_a_fork(partial(_layer_bytes, k, n, m, threads)) for k, n, m in points]))


def _in_a_fork(measure: Callable[[], int]) -> int:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write, str(measure()).encode())
            status = 0
        finally:
            os._exit(status)  # what the parent has opened is the parent's to close
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return int(answer)


def _layer_bytes(k: int, n: int, m: int, threads: int) -> int:
    torch.set_num_threads(threads)
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # huge pages would round every buffer up
    with torch.inference_mode():
        module = Int8Linear(k, n, bias=False)
        module.weight.random_(-CODE_MAX, CODE_MAX + 1)
        module.SCB.fill_(1)
        x = torch.randn(m, k).mul_(2).bfloat16()
        small = Int8Linear(64, 64, bias=False)
        small(torch.ones(64, 64, dtype=torch.bfloat16))  # loads the kernels, starts the threads
        return peak_of(lambda: module(x))


def peak_of(call: Callable[[], object]) -> int:
    """Bytes by which the resident set of this process rises above what it is now, during a call.

    Raises LLMInt8Error where the system has no such measurement.
    """
    before = reset_peak()
    call()
    after = peak()
    if before is None or after is None:
        raise LLMInt8Error(f"{_CLEAR} cannot be written to; a peak can only be measured on Linux")
    return after - before


def reset_peak() -> int | None:
    """Give back what is free, and make the peak what is resident now; its bytes, None if that cannot be."""
    if not os.access(_CLEAR, os.W_OK):
        return None
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    return peak()


def peak() -> int | None:
    """The most bytes of this process that were resident since the last reset; None where nothing tells."""
    if not _STATUS.exists():
        return None
    line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024
