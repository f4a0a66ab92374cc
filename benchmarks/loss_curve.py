"""LoRA on a float32, an int8 and a 4-bit base, the same text and batches: do the losses fall alike?

    python benchmarks/loss_curve.py --plot loss-curve.png          # SmolLM2 on the text that llmint8 carries
    python benchmarks/loss_curve.py --model ./my-model --steps 50
    python benchmarks/loss_curve.py --inject 6x64 --dtype bfloat16 --bases int8 --steps 500 --length 16

transformers' Trainer trains adapters of rank 8 on all projections: on the float model with AdamW in 32 bits,
on the quantised ones with AdamW whose state has 8 bits. The loss on the last tenth of the text is taken
before and after. A loss that is not finite is an error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llmint8
from llmint8.analysis.inject import columns_by_factor, inject_outliers
from llmint8.cli.finetune_picture import draw
from llmint8.cli.models import find_float_model, load_float, load_tokenizer
from llmint8.cli.options import Dtype
from llmint8.convert.outlier_columns import sample_text
from llmint8.integrations.finetuning import Settings, Training, cut, train_adapter
from llmint8.plotting import require_matplotlib

#: Name, how the base is quantised, and the name of the optimizer in transformers.
RUNS = {
    "float": ("float, AdamW in 32 bits", lambda _: None, "adamw_torch"),
    "int8": ("int8, AdamW in 8 bits", llmint8.quantize_model, "adamw_8bit"),
    "nf4": ("NF4, AdamW in 8 bits", llmint8.quantize_model_4bit, "adamw_8bit"),
}
SEED = 3


def main(arguments: list[str] | None = None) -> dict[str, Training]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a float model: a folder, or smollm2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="tokens of a piece of text")
    parser.add_argument("--bases", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--dtype", type=Dtype, choices=list(Dtype), default=Dtype.float32)
    parser.add_argument(
        "--inject",
        type=columns_by_factor,
        metavar="COLUMNSxFACTOR",
        help="outlier columns, by a power of two",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args(arguments)
    if options.plot:
        require_matplotlib()
    found = find_float_model(options.model, "this benchmark")
    ids = load_tokenizer(found.path)(sample_text(), return_tensors="pt")["input_ids"][0]
    results = {}
    for name, quantize, optimizer in (RUNS[base] for base in options.bases):
        model = load_float(found, options.dtype)
        if options.inject:
            inject_outliers(model, {"input_ids": ids[None, :16], "use_cache": False}, *options.inject)
        quantize(model)
        settings = Settings(options.steps, options.batch, optimizer=optimizer, seed=SEED)
        results[name] = train_adapter(model, cut(ids, options.length), settings)
    print("\n| base and optimizer | first loss | mean of the last five | held back, before | after |")
    print("|---|---|---|---|---|")
    for name, training in results.items():
        losses = training.losses
        last = sum(losses[-5:]) / len(losses[-5:])
        print(f"| {name} | {losses[0]:.3f} | {last:.3f} | {training.before:.3f} | {training.after:.3f} |")
    if options.plot:
        options.plot.write_bytes(draw({name: training.losses for name, training in results.items()}))
    return results


if __name__ == "__main__":
    main()
