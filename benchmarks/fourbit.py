"""Linear layers with 4-bit weights against de-quantising and multiplying: `python benchmarks/fourbit.py`.

All have the same NF4 codes and float32 scales, and take turns in one process; of each shape there are so many
weights that none is in a cache. bitsandbytes joins where it is installed.
"""

import argparse
import statistics
import time

import torch

from llmint8 import ops, reference

SHAPES = [(576, 1536), (2048, 2048), (4096, 4096)]
#: Bytes of 4-bit weights that are used in turn.
ROTATED = 96 << 20


def contenders(weights, k: int, n: int, dtype: torch.dtype) -> dict:
    """Name to a function of x and the index of a weight."""

    def dequantized(as_dtype):
        def run(x, i):
            packed, absmax = weights[i % len(weights)]
            weight = ops.dequantize_4bit(packed, absmax, None, None, "nf4", [n, k], as_dtype)
            return torch.nn.functional.linear(x.to(as_dtype), weight)

        return run

    def ours(x, i):
        packed, absmax = weights[i % len(weights)]
        return ops.linear_4bit(x, packed, absmax, None, None, "nf4", n, None)

    found = {
        "llmint8": ours,
        "dequantise + bfloat16": dequantized(torch.bfloat16),
        "dequantise + float32": dequantized(torch.float32),
    }
    try:
        import bitsandbytes.functional as bnb
    except ImportError:
        return found
    state = bnb.QuantState(None, torch.Size((n, k)), bnb.get_4bit_type("nf4", "cpu"), 64, "nf4", dtype)

    def bitsandbytes(x, i):
        packed, state.absmax = weights[i % len(weights)]
        return torch.nn.functional.linear(x, bnb.dequantize_4bit(packed, state))

    found["bitsandbytes"] = bitsandbytes
    return found


def measure(k: int, n: int, rows: list[int], dtype: torch.dtype, rounds: int) -> None:
    count = max(2, ROTATED // (n * k // 2))
    one = reference.quantize_4bit(torch.randn(n, k), "nf4")
    weights = [(one[0].clone(), one[1].clone()) for _ in range(count)]
    run = contenders(weights, k, n, dtype)
    for m in rows:
        x = torch.randn(m, k).to(dtype)
        times: dict[str, list[float]] = {name: [] for name in run}
        for turn in range(rounds):
            for name, function in run.items():
                calls = 1 if turn == 0 or times[name][-1] > 0.01 else 10
                start = time.perf_counter()
                for i in range(calls):
                    function(x, turn * 10 + i)
                times[name].append((time.perf_counter() - start) / calls)
        medians = {name: statistics.median(spent[1:]) for name, spent in times.items()}
        ratios = " | ".join(
            f"{spent / medians['llmint8']:.2f}" for name, spent in medians.items() if name != "llmint8"
        )
        print(f"| {k}×{n} | {m} | {1e6 * medians['llmint8']:,.0f} | {ratios} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    names = [name for name in contenders([], 1, 1, dtype) if name != "llmint8"]
    print(
        f"{torch.get_num_threads()} threads, x {arguments.dtype}; ratios of time, above 1: llmint8 is faster"
    )
    print("| K×N | M | llmint8, µs | " + " | ".join(f"{name} ÷" for name in names) + " |")
    print("|---" * (3 + len(names)) + "|")
    with torch.inference_mode():
        for k, n in SHAPES:
            measure(k, n, arguments.rows, dtype, arguments.rounds)


if __name__ == "__main__":
    main()
