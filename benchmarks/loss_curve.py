"""LoRA on a float32, an int8 and a 4-bit base, the same text and batches: do the losses fall alike?

    python benchmarks/loss_curve.py --plot loss-curve.png          # SmolLM2 on the text that llmint8 carries
    python benchmarks/loss_curve.py --model ./my-model --steps 50
    python benchmarks/loss_curve.py --inject 6x64 --dtype bfloat16 --bases int8 --steps 500 --length 16

transformers' Trainer trains adapters of rank 8 on all projections: on the float model with AdamW in 32 bits,
on the quantised ones with AdamW whose state has 8 bits. The loss on the last tenth of the text is taken
before and after. A loss that is not finite is reported.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

import llmint8
from llmint8.analysis.inject import columns_by_factor, inject_outliers
from llmint8.cli.models import find_float_model, load_float, load_tokenizer
from llmint8.cli.options import Dtype
from llmint8.convert.outlier_columns import sample_text
from llmint8.plotting import require_matplotlib

#: Name, how the base is quantised, and the name of the optimizer in transformers.
RUNS = {
    "float": ("float, AdamW in 32 bits", lambda _: None, "adamw_torch"),
    "int8": ("int8, AdamW in 8 bits", llmint8.quantize_model, "adamw_8bit"),
    "nf4": ("NF4, AdamW in 8 bits", llmint8.quantize_model_4bit, "adamw_8bit"),
}
SEED = 3


class Losses(TrainerCallback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            self.steps.append(float(logs["loss"]))


def blocks(ids: torch.Tensor, length: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pieces of a text of `length` tokens: nine tenths to learn from, the last to be asked about."""
    pieces = [{"input_ids": part, "labels": part} for part in ids.split(length) if len(part) == length]
    held = max(1, len(pieces) // 10)
    return pieces[:-held], pieces[-held:]


def train(model: Any, text: Any, optimizer: str, steps: int, batch: int) -> tuple[list[float], float, float]:
    """Losses of the steps, and the loss on what is held back, before and after."""
    torch.manual_seed(SEED)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    losses = Losses()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            learning_rate=1e-3,
            optim=optimizer,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=SEED,
            use_cpu=True,
        )
        trainer = Trainer(adapted, settings, train_dataset=text[0], eval_dataset=text[1], callbacks=[losses])
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        return losses.steps, before, trainer.evaluate()["eval_loss"]


def draw(curves: dict[str, list[float]], file: Path) -> None:
    """A PNG of the losses, each the mean of five steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, losses in curves.items():
        values = torch.tensor(losses)
        smooth = values.unfold(0, min(5, len(values)), 1).mean(-1)
        axes.plot(range(1, len(smooth) + 1), smooth.tolist(), label=name, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token (mean of 5 steps)")
    axes.legend()
    figure.savefig(file)


def main(arguments: list[str] | None = None) -> dict[str, tuple[list[float], float, float]]:
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
        results[name] = train(model, blocks(ids, options.length), optimizer, options.steps, options.batch)
    print("\n| base and optimizer | first loss | mean of the last five | held back, before | after |")
    print("|---|---|---|---|---|")
    for name, (losses, before, after) in results.items():
        last = sum(losses[-5:]) / len(losses[-5:])
        print(f"| {name} | {losses[0]:.3f} | {last:.3f} | {before:.3f} | {after:.3f} |")
        broken = sum(not math.isfinite(loss) for loss in losses)
        if broken:
            print(f"{broken} of {len(losses)} losses are not finite")
    if options.plot:
        draw({name: losses for name, (losses, *_) in results.items()}, options.plot)
    return results


if __name__ == "__main__":
    main()
