"""One linear layer: llmint8 against torch's float32, bfloat16 and float16, and bitsandbytes where installed.

    python benchmarks/layer.py
    python benchmarks/layer.py --shapes 4096x4096 --rows 1 16 --json layer.json

Activations are bfloat16 (float32 and float16 for torch's own), six columns hold outliers. Prints, for each
shape K×N and number of rows M, the median time of llmint8 and how many times longer each other one takes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from llmint8 import ops
from runner import copies, environment, interleave, rotate

SHAPES = ("576x1536", "2048x2048", "4096x4096", "4096x11008")
ROWS = (1, 4, 16, 64, 128, 512)
OUTLIER_COLUMNS = (3, 77, 200, 301, 400, 500)
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OURS = {"llmint8 6.0": 6.0, "llmint8 auto": -1.0, "llmint8 0": 0.0}


def candidates(k: int, n: int, m: int) -> dict[str, Callable[[], object]]:
    """Every way to compute the layer on this machine, by name."""
    x = torch.randn(m, k)
    x[:, list(OUTLIER_COLUMNS)] *= 20
    half = x.bfloat16()
    found: dict[str, Callable[[], object]] = {}
    codes = rotate([torch.randint(-127, 128, (n, k), dtype=torch.int8) for _ in range(copies(k * n))])
    absmax = torch.rand(n)
    for name, threshold in OURS.items():
        found[name] = lambda t=threshold: ops.linear(half, codes(), absmax, None, t)
    for name, dtype in FLOATS.items():
        weight, given = torch.randn(n, k).to(dtype), x.to(dtype)
        weights = rotate([weight.clone() for _ in range(copies(weight.nbytes))])
        found[name] = lambda given=given, weights=weights: functional.linear(given, weights())
    if importlib.util.find_spec("bitsandbytes"):
        found["bitsandbytes 6.0"] = bitsandbytes(half, k, n)
    return found


def bitsandbytes(x: torch.Tensor, k: int, n: int) -> Callable[[], object]:
    """The same layer in bitsandbytes, threshold 6.0."""
    from bitsandbytes.nn import Linear8bitLt

    def layer() -> torch.nn.Module:
        module = Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=6.0)
        return module.to("cpu").eval()

    layers = rotate([layer() for _ in range(copies(k * n))])
    return lambda: layers()(x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="KxN")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="M")
    parser.add_argument("--json", type=Path, help="also write every time to this file")
    arguments = parser.parse_args()
    results = []
    for shape in arguments.shapes:
        k, n = (int(size) for size in shape.split("x"))
        for m in arguments.rows:
            with torch.inference_mode():
                results.append({"k": k, "n": n, "m": m, "seconds": interleave(candidates(k, n, m))})
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2))


def show(results: list[dict]) -> None:
    """The table: microseconds of llmint8 at 6.0, and the others' time over it."""
    others = [name for name in results[0]["seconds"] if name != "llmint8 6.0"]
    table = Table("K×N", "M", "llmint8 6.0, µs", *(f"{name} ÷" for name in others), title=str(environment()))
    for result in results:
        times = result["seconds"]
        ours = times["llmint8 6.0"]
        ratios = (f"{times[name] / ours:.2f}" for name in others)
        table.add_row(f"{result['k']}×{result['n']}", str(result["m"]), f"{ours * 1e6:.0f}", *ratios)
    means = (
        math.exp(
            sum(math.log(r["seconds"][name] / r["seconds"]["llmint8 6.0"]) for r in results) / len(results)
        )
        for name in others
    )
    table.add_section()
    table.add_row("geometric mean", "", "", *(f"{mean:.2f}" for mean in means))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
