"""Where the time of one token goes in the native decoder: `python benchmarks/decoder.py`.

A decoder of random weights, by default of SmolLM2-135M's sizes, runs one token behind a past, again without
its head, without a past, and with narrow layers; differences of the medians are the parts. The runs take
turns, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmint8.backends.decoder import NativeDecoder
from llmint8.backends.native import Native
from llmint8.reference.decoder import Decoder, DecoderLayer, Linear

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sizes:
    hidden: int
    middle: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


SIZES = {
    "smollm2-135m": Sizes(576, 1536, 30, 9, 3, 64, 49152),
    "qwen2.5-0.5b": Sizes(896, 4864, 24, 14, 2, 64, 151936),
}


def linear(n: int, k: int) -> Linear:
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return Linear(codes, torch.full((n,), 0.1), threshold=-1.0)


def decoder(sizes: Sizes, dtype: torch.dtype, head: str) -> Decoder:
    hidden, middle = sizes.hidden, sizes.middle
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    norm = torch.ones(hidden, dtype=dtype)

    def layer() -> DecoderLayer:
        return DecoderLayer(
            input_norm=norm,
            q=linear(query, hidden),
            k=linear(key, hidden),
            v=linear(key, hidden),
            o=linear(hidden, query),
            post_norm=norm,
            gate=linear(middle, hidden),
            up=linear(middle, hidden),
            down=linear(hidden, middle),
        )

    output = linear(sizes.vocabulary, hidden)
    if head == "exact":
        output = Linear(torch.randn(sizes.vocabulary, hidden).to(dtype))
    layers = tuple(layer() for _ in range(sizes.layers))
    return Decoder(
        layers, norm, 1e-5, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.head_dim**-0.5, output
    )


def call(run: NativeDecoder, batch: int, tokens: int, past: int, logits: int) -> Callable[[], object]:
    """A call with random tokens and caches."""
    model = run.decoder
    dtype = model.norm.dtype

    def caches() -> list[Tensor]:
        shape = (batch, model.kv_heads, past + tokens, model.head_dim)
        return [torch.randn(shape).to(dtype) for _ in model.layers]

    hidden = torch.randn(batch, tokens, len(model.norm)).to(dtype)
    angle = torch.randn(1, tokens, model.head_dim)
    arguments = hidden, angle.cos().to(dtype), angle.sin().to(dtype), caches(), caches(), past, None, logits
    return lambda: run(*arguments)


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each call; one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            for _ in range(3):
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", choices=SIZES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--head", choices=["exact", "int8"], default="int8")
    parser.add_argument("--past", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    native, sizes, dtype = Native(), SIZES[given.sizes], DTYPES[given.dtype]
    whole = NativeDecoder(decoder(sizes, dtype, given.head), native)
    narrow = NativeDecoder(decoder(replace(sizes, hidden=16, middle=1, vocabulary=1), dtype, "int8"), native)
    time_of = medians(
        {
            "token": call(whole, given.batch, 1, given.past, 1),
            "no head": call(whole, given.batch, 1, given.past, 0),
            "no past": call(whole, given.batch, 1, 0, 0),
            "no work": call(narrow, given.batch, 1, 0, 0),
            "prompt": call(whole, given.batch, given.past, 0, 1),
        },
        given.rounds,
    )
    parts = {
        "head": time_of["token"] - time_of["no head"],
        f"attention to {given.past} tokens": time_of["no head"] - time_of["no past"],
        "linear layers": time_of["no past"] - time_of["no work"],
        "calls, norms, gates, waiting": time_of["no work"],
    }
    print(f"{given.sizes}, {given.dtype}, {given.head} head, batch {given.batch}, ", end="")
    print(f"{given.threads} threads, {native.isa}")
    for name, milliseconds in {**parts, "one token": time_of["token"]}.items():
        print(f"{name:32}{milliseconds:9.2f} ms")
    prompt = time_of["prompt"]
    speed = given.past * given.batch / prompt * 1e3
    print(f"{f'prompt of {given.past} tokens':32}{prompt:9.1f} ms, {speed:.0f}/s")


if __name__ == "__main__":
    main()
