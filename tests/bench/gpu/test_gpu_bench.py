"""The measurements of a GPU, on tensors of the CPU and with a clock in the place of a GPU's events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmint8 import ops
from llmint8.bench import candidates, draw, headline, peers
from llmint8.bench.gpu import (
    GpuTimer,
    Llama,
    capture_graph,
    check_layers,
    check_replays,
    checks,
    decode,
    run_gpu_benchmark,
    time_decoding,
)
from llmint8.bench.limits import Limits
from llmint8.bench.timing import Candidate, by_clock
from llmint8.cli.bench_layer import show_layers

TINY = Llama(32, 48, 1, 4, 2, 100)


class ClockTimer:
    """What `GpuTimer` offers; the first candidate of another library cannot be captured."""

    beyond = 1 << 16

    def eager(self, candidate: Candidate) -> Callable[[], float]:
        return by_clock(candidate)

    def graph(self, candidate: Candidate) -> Callable[[], float]:
        if candidate.may_fail:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return by_clock(candidate)

    def limits(self, size: int) -> Limits:
        return Limits(1e12, 1e15)


def test_layers_in_graphs_and_call_by_call(monkeypatch, capsys):
    monkeypatch.setattr(candidates, "copies", lambda nbytes, beyond: 2)
    monkeypatch.setattr(peers, "installed", list)
    steps = []
    found = run_gpu_benchmark(
        ClockTimer(), "cpu", [(32, 16)], [1, 20], 3, 0.1, 64, lambda *s: steps.append(s)
    )
    assert [*found] == ["CUDA graph", "eager"]
    assert steps == [(1, 2), (2, 2)]
    for way, benchmark in found.items():
        assert [(p.k, p.n, p.m) for p in benchmark.points] == [(32, 16, 1), (32, 16, 20)]
        assert headline(benchmark.environment).startswith(f"cpu, {way}, torch ")
        point = benchmark.points[0]
        fastest = min(point.seconds["bfloat16"], point.seconds["float16"])
        assert point.half_ratio() == fastest / point.seconds["llmint8 6.0"]
        assert draw(benchmark).startswith(b"\x89PNG")
        show_layers(benchmark)
    assert found["CUDA graph"].points[0].failures["torch._int_mm"].endswith("when stream is capturing")
    assert "cpu, CUDA graph" in capsys.readouterr().out


def test_right_bits_and_wrong_ones(monkeypatch):
    given = "cpu", [(40, 24), (16, 8)], [1, 5]
    assert [wrong for _, wrong in check_layers(*given)] == [0, 0, 0, 0]
    real = ops.linear

    def wrong_at_times(x, *arguments):
        y = real(x, *arguments)
        return -y if len(x) == 5 else y

    monkeypatch.setattr(checks.ops, "linear", wrong_at_times)
    names = [name for name, wrong in check_layers(*given) if wrong]
    assert names == [
        f"{shape}, {digits}"
        for shape in ("40×24", "16×8")
        for digits in ("1 weight digit", "2 weight digits")
    ]


def test_replays_see_what_changed():
    def capture(run):
        y = run().clone()
        return lambda: y.copy_(run()), y

    def frozen(run):
        return lambda: None, run()

    steps = []
    given = "cpu", 64, 16, 3, 5, lambda *s: steps.append(s)
    assert check_replays(*given, capture) == 0
    assert steps[-1] == (5, 5)
    assert check_replays(*given, frozen) == 5


def test_every_form_decodes(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda: ["bitsandbytes"])

    def build(name, weight, count):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
        layer.weight.data = weight.bfloat16()
        return [layer]

    monkeypatch.setattr(peers, "build", build)
    monkeypatch.setattr(decode, "_TIMINGS", 1)
    real = decode._generate

    def generate(model, ids, new, compiled):
        if compiled and len(ids) == 2:
            raise RuntimeError("no compiler\nat all")
        return real(model, ids, new, compiled)

    monkeypatch.setattr(decode, "_generate", generate)
    said = []
    found = time_decoding("cpu", TINY, [1, 2], 4, said.append)
    assert said == ["bfloat16", "llmint8", "bitsandbytes"]
    assert [(d.form, d.batch, d.compiled) for d in found[4:8]] == [
        ("llmint8", 1, False), ("llmint8", 1, True), ("llmint8", 2, False), ("llmint8", 2, True),
    ]  # fmt: skip
    assert [d.failure for d in found if d.batch == 2 and d.compiled] == ["RuntimeError: no compiler"] * 3
    assert all((d.seconds is None) == (d.failure is not None) for d in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_a_gpu():
    timer = GpuTimer()
    found = run_gpu_benchmark(timer, "cuda", [(256, 128)], [1, 32], 3, 0.1, 512, lambda *s: None)
    assert all(p.seconds["llmint8 6.0"] > 0 for benchmark in found.values() for p in benchmark.points)
    assert [wrong for _, wrong in check_layers("cuda", [(256, 128)], [1, 32])] == [0, 0]
    assert check_replays("cuda", 256, 128, 16, 20, lambda *s: None, capture_graph) == 0
    assert all(d.seconds is not None for d in time_decoding("cuda", TINY, [1], 4, lambda form: None))
