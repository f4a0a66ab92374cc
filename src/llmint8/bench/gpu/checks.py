"""Whether a GPU returns the bits of the CPU, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from llmint8 import ops
from llmint8.nn import Int8Linear
from llmint8.numerics import AUTO_CODE, DEFAULT_THRESHOLD

#: Rows of a batch that the CPU computes too: a row's result does not depend on the others.
_ROWS = (0, 1, -1)
_OUTLIERS = 0.007


def _wrong_bits(found: Tensor, want: Tensor) -> int:
    """How many elements, bfloat16, differ in a bit; found may be on a GPU."""
    return int((found.cpu().view(torch.int16) != want.view(torch.int16)).sum())


def _activations(m: int, k: int, generator: torch.Generator) -> Tensor:
    """bfloat16 [m, k]: six columns of outliers, and others at random places."""
    x = torch.randn(m, k, generator=generator)
    x[:, :: max(1, k // 6)] *= 20
    x[torch.rand(m, k, generator=generator) < _OUTLIERS] *= 30
    return x.bfloat16()


def check_layers(
    device: str, shapes: Iterable[tuple[int, int]], rows: Sequence[int]
) -> Iterable[tuple[str, int]]:
    """For each layer of K inputs and N outputs, with and without a second weight digit: its name, and how
    many of the compared outputs, over all numbers of rows and three thresholds, have other bits."""
    generator = torch.Generator().manual_seed(0)
    for k, n in shapes:
        weight = torch.randn(n, k, generator=generator) / k**0.5
        columns = torch.arange(0, k, max(1, k // 16), dtype=torch.int32)
        for digits, chosen in ((1, None), (2, columns)):
            own = Int8Linear.from_weight(weight, outlier_cols=chosen)
            state = [own.weight, own.SCB, None, own.outlier_cols, own.weight_low]
            moved = [None if t is None else t.to(device) for t in state]
            wrong = 0
            for m in rows:
                x = _activations(m, k, generator)
                for threshold in (0.0, DEFAULT_THRESHOLD, AUTO_CODE):
                    y = ops.linear(x.to(device), *moved[:3], threshold, *moved[3:])
                    picked = sorted({row % m for row in _ROWS})
                    want = ops.linear(x[picked], *state[:3], threshold, *state[3:])
                    wrong += _wrong_bits(y[picked], want)
            yield f"{k}×{n}, {digits} weight digit{'s' * (digits > 1)}", wrong


def check_replays(
    device: str, k: int, n: int, m: int, replays: int, step: Callable[[int, int], None],
    capture: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]],
) -> int:  # fmt: skip
    """How many of so many replays of one captured call have a wrong bit, with other outliers each.

    capture: captures a call; returns what replays it, and the output that it writes.
    """
    generator = torch.Generator().manual_seed(1)
    own = Int8Linear.from_weight(torch.randn(n, k, generator=generator) / k**0.5)
    state = own.weight, own.SCB, None, DEFAULT_THRESHOLD
    moved = own.weight.to(device), own.SCB.to(device), None, DEFAULT_THRESHOLD
    x = _activations(m, k, generator).to(device)
    replay, y = capture(lambda: ops.linear(x, *moved))
    wrong = 0
    for turn in range(replays):
        rows = _activations(m, k, generator)
        x.copy_(rows)
        replay()
        wrong += _wrong_bits(y, ops.linear(rows, *state)) > 0
        step(turn + 1, replays)
    return wrong


def capture_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A call as a CUDA graph: what replays it, and its output."""
    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    return graph.replay, y
