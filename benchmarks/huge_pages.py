"""What huge pages are worth to a layer: `python benchmarks/huge_pages.py`.

The same weights where torch's allocator and where `llmint8.memory` puts them, by turns in one process;
bfloat16 input, threshold 6.0. Above 1, huge pages are faster.
"""

import argparse
from functools import partial

import torch

from llmint8.bench.timing import Candidate, copies, rotate, take_turns
from llmint8.nn import Int8Linear

SHAPES = [(2048, 2048), (4096, 4096), (4096, 11008)]
ROWS = [1, 4, 16, 64]


def where_torch_puts_it(layer: Int8Linear) -> Int8Linear:
    layer.weight.data = layer.weight.clone()
    return layer


def candidates(k: int, n: int, m: int) -> dict[str, Candidate]:
    weight, x = torch.randn(n, k), torch.randn(m, k).bfloat16()
    layers = [Int8Linear.from_weight(weight) for _ in range(2 * copies(k * n))]
    torchs = rotate([where_torch_puts_it(layer) for layer in layers[::2]])
    huge = rotate(layers[1::2])
    return {
        "torch": Candidate(lambda: partial(torchs(), x)),
        "huge": Candidate(lambda: partial(huge(), x)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="timings of each (default: 200)")
    rounds = parser.parse_args().rounds
    print("| K×N | M | torch's allocator, µs | huge pages, µs | ratio |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for k, n in SHAPES:
            for m in ROWS:
                seconds, _ = take_turns(candidates(k, n, m), rounds, budget=2.0)
                torchs, huge = seconds["torch"], seconds["huge"]
                print(f"| {k}×{n} | {m} | {torchs * 1e6:,.0f} | {huge * 1e6:,.0f} | {torchs / huge:.2f} |")


if __name__ == "__main__":
    main()
