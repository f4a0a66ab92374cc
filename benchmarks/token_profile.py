"""Where the time of one decoded token goes, before and after: `python benchmarks/token_profile.py`.

The model as `from_pretrained` gives it is profiled by operators of torch; what is left of the wall time is
Python and the waits between them. Of the fast path, the one call of the library is timed, and what the loop
of `generate` takes around it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from llmint8 import Int8Config, optimize_for_inference, quantize_model
from llmint8.backends.native import Native
from llmint8.bench.model.transformers_runner import generate
from llmint8.cli.models import find_float_model, load_float
from llmint8.cli.options import Dtype
from llmint8.ops.direct import LINEAR_KERNELS

#: Parts of a name of an operator, and what it belongs to.
GROUPS = {
    "attention": "attention",
    "mm": "output head",
    "linear": "output head",
    "cat": "growing the cache",
}
OTHERS = "norms, activations, rotation, sums"


def token_time(model, rows, new: int) -> float:
    """Milliseconds of a token after the first."""
    return 1e3 * generate(model, rows, new).further_seconds / (new - 1)


def operators(model, rows, new: int) -> dict[str, float]:
    """Milliseconds of a token by groups of operators: a run of all tokens less one of the prompt alone."""

    def times(count: int) -> dict[str, float]:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            generate(model, rows, count)
        found: dict[str, float] = {}
        for event in profiled.key_averages():
            group = next((group for part, group in GROUPS.items() if part in event.key), OTHERS)
            found[group] = found.get(group, 0.0) + event.self_cpu_time_total / 1e3
        return found

    prompt, whole = times(2), times(new + 2)
    return {group: (whole[group] - prompt.get(group, 0.0)) / new for group in whole}


def linear_layers(model, rows, new: int) -> float:
    """Milliseconds of a token in int8 linear layers, which torch's profiler does not see: they are called
    past its dispatcher."""
    original = LINEAR_KERNELS["cpu"]

    def total(count: int) -> float:
        spent = 0.0

        def call(*given):
            nonlocal spent
            start = time.perf_counter()
            result = original(*given)
            spent += time.perf_counter() - start
            return result

        LINEAR_KERNELS["cpu"] = call
        try:
            generate(model, rows, count)
        finally:
            LINEAR_KERNELS["cpu"] = original
        return 1e3 * spent

    return (total(new + 2) - total(2)) / new


def timed_calls(run: Callable[[], object]) -> float:
    """Milliseconds of the library's call for one token, the median."""
    original, spent = Native.call, []

    def call(self, *given):
        start = time.perf_counter()
        try:
            return original(self, *given)
        finally:
            spent.append(time.perf_counter() - start)

    Native.call = call
    try:
        run()
    finally:
        Native.call = original
    return 1e3 * statistics.median(spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder of a float model, or smollm2")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtype", type=Dtype, default=Dtype.bfloat16, choices=list(Dtype))
    arguments = parser.parse_args()
    new = arguments.new_tokens
    model = load_float(find_float_model(arguments.model, "this profile"), arguments.dtype)
    model.generation_config.eos_token_id = None
    rows = torch.randint(0, model.config.vocab_size, (1, arguments.prompt_tokens)).tolist()
    quantize_model(model, Int8Config())
    token_time(model, rows, 4)
    total = token_time(model, rows, new)
    print(f"modules: {total:.2f} ms a token")
    groups = {**operators(model, rows, new), "int8 linear layers": linear_layers(model, rows, new)}
    for group, spent in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"  {spent:6.2f}  {group}")
    print(f"  {total - sum(groups.values()):6.2f}  Python, and between operators")
    for head in ("keep", "int8"):
        optimize_for_inference(model, head=head)
        token_time(model, rows, 4)
        total = token_time(model, rows, new)
        inside = timed_calls(lambda: generate(model, rows, new))
        print(
            f"fast path, head {head}: {total:.2f} ms a token\n  {inside:6.2f}  the library's call, all layers"
        )
        print(f"  {total - inside:6.2f}  the loop of generate, embedding, checks")


if __name__ == "__main__":
    main()
