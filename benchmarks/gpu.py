"""A GPU: first whether its bits are the CPU's, then how fast layers and a whole model are.

    python benchmarks/gpu.py --json gpu.json --plot gpu.png
    python benchmarks/gpu.py --shapes 4096x4096 --rows 1,64 --no-decode

Layers: llmint8, cuBLAS in three float types, torch._int_mm alone, and bitsandbytes and torchao where they are
installed, each in a CUDA graph and call by call, the second cache flushed, on weights that rotate. The model
is a random Llama with the shape of 8 billion parameters: bfloat16, llmint8 and bitsandbytes decode, call by
call and compiled. With --plot, a picture for each way of calling: gpu-graph.png and gpu-eager.png.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from llmint8 import backends
from llmint8.bench import draw, geometric_mean, gpu
from llmint8.cli.bench_layer import show_layers
from llmint8.cli.output import note, progress, stdout

#: Inputs by outputs.
SHAPES = "4096x4096,4096x14336,14336x4096"
ROWS = "1,4,16,32,64,128,256,512,1024,4096"


def shape(text: str) -> tuple[int, int]:
    k, n = text.split("x")
    return int(k), int(n)


def check(shapes, rows, replays: int) -> bool:
    """Whether all bits are right; says what is not."""
    good = True
    for name, wrong in gpu.check_layers("cuda", shapes, rows):
        print(f"{name}: {'the bits of the CPU' if not wrong else f'{wrong} outputs have other bits'}")
        good = good and not wrong
    (k, n), m = shapes[0], min(16, max(rows))
    with progress("Replaying a CUDA graph with other outliers") as step:
        wrong = gpu.check_replays("cuda", k, n, m, replays, step, gpu.capture_graph)
    print(f"{replays} replays of {k}×{n}, M={m}, with other outliers each: {wrong} wrong\n")
    return good and not wrong


def summary(way: str, found) -> None:
    """What the ratios to 16 bits are, by the number of rows."""
    groups = {"M ≤ 64": (1, 64), "64 < M < 1024": (65, 1023), "M ≥ 1024": (1024, sys.maxsize)}
    for name, (low, high) in groups.items():
        ratios = [p.half_ratio() for p in found.points if low <= p.m <= high]
        if ratios:
            mean = geometric_mean(ratios)
            print(
                f"{way}, {name}: the faster of float16 and bfloat16 takes {min(ratios):.2f} times as long as "
                f"llmint8 or more, {mean:.2f} in the mean"
            )
    print()


def show_decoding(found: list) -> None:
    print("| decoding | batch | compiled | ms a token | ÷ bfloat16 |\n|---|---|---|---|---|")
    base = {(d.batch, d.compiled): d.seconds for d in found if d.form == "bfloat16"}
    for d in found:
        how = f"| {d.form} | {d.batch} | {'yes' if d.compiled else 'no'} |"
        float_seconds = base.get((d.batch, d.compiled))
        if d.seconds is None:
            print(f"{how} | |")
            note(f"{d.form} at batch {d.batch} did not run: {d.failure}")
        else:
            ratio = "" if float_seconds is None else f"{float_seconds / d.seconds:.2f}"
            print(f"{how} {d.seconds * 1e3:.2f} | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help=f"inputs by outputs; {SHAPES}")
    parser.add_argument("--rows", default=ROWS, help=f"numbers of rows; {ROWS}")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each; the median counts")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds after which a candidate sits out")
    parser.add_argument("--replays", type=int, default=1000, help="of a graph, each checked")
    parser.add_argument("--batches", default="1,8", help="sequences that the model continues at once")
    parser.add_argument("--new-tokens", type=int, default=65, help="tokens that it adds to each")
    parser.add_argument("--no-decode", action="store_true", help="layers only")
    parser.add_argument("--json", type=Path, help="every time, in seconds, into this file")
    parser.add_argument("--plot", type=Path, help="pictures into files named after this one")
    arguments = parser.parse_args()
    kernels = next(row for row in backends.status() if row.name == "triton")
    if not kernels.active:
        sys.exit(f"there is nothing to time here: {kernels.detail}")
    shapes = [shape(text) for text in arguments.shapes.split(",")]
    rows = [int(text) for text in arguments.rows.split(",")]
    if not check(shapes, rows, arguments.replays):
        sys.exit("wrong bits: nothing is timed")
    with progress("Timing layers") as step:
        layers = gpu.run_gpu_benchmark(
            gpu.GpuTimer(), "cuda", shapes, rows, arguments.rounds, arguments.budget, 8192, step
        )
    for way, found in layers.items():
        stdout().print(way, style="bold")
        show_layers(found)
        summary(way, found)
        if arguments.plot:
            stem = f"{arguments.plot.stem}-{'eager' if way == 'eager' else 'graph'}"
            arguments.plot.with_stem(stem).write_bytes(draw(found))
    decoded = []
    if not arguments.no_decode:
        batches = [int(text) for text in arguments.batches.split(",")]
        decoded = gpu.time_decoding("cuda", gpu.Llama(), batches, arguments.new_tokens, print)
        show_decoding(decoded)
    if arguments.json:
        content = {way: found.to_dict() for way, found in layers.items()}
        content["decoding"] = [asdict(d) for d in decoded]
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
