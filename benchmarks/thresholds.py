"""Which outlier rule is the best default: accuracy and cost of thresholds and of the automatic factor.

    python benchmarks/thresholds.py                          # SmolLM2, the model of the demo
    python benchmarks/thresholds.py --inject 6x64 --inject 6x32 --inject 12x16
    python benchmarks/thresholds.py ./my-model --text book.txt --json thresholds.json
    python benchmarks/thresholds.py --time --inject 6x64     # on an idle machine

Accuracy: every rule is the reference itself, applied to the layers that llmint8 converts; the automatic rule
also with other factors than the contract's. KL: to the float32 model, nats. Beside it what a rule costs: the
share of elements with a second digit, of the columns of a window that hold one, and of the runs of 16
elements of a row, which is what a kernel skips or multiplies once more.

--time runs the real kernels instead, on the inputs that the layers have while the int8 model reads the text:
all layers once for each threshold, which take turns; medians.

A model for masked words (BERT) reads each line of the text by itself, with every eighth token masked, eight
times, so that each token is predicted once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from llmint8 import Int8Config, quantize_model, reference, set_threshold
from llmint8.analysis import evaluate
from llmint8.analysis.inject import columns_by_factor, inject_outliers
from llmint8.analysis.schemes import Layer, Scheme, applied
from llmint8.bench.timing import Candidate, take_turns
from llmint8.checkpoint import read_json
from llmint8.cli.evaluate import logits_of
from llmint8.cli.models import find_float_model, load_float, load_tokenizer
from llmint8.cli.options import Dtype
from llmint8.cli.text import first_tokens, read_text
from llmint8.config import Threshold, threshold_code
from llmint8.convert import plan_conversion
from llmint8.nn import Int8Linear
from llmint8.numerics import AUTO_FACTOR
from llmint8.reference import outliers

#: What is compared: a threshold, and for the automatic rule its factor.
RULES: tuple[tuple[Threshold, int], ...] = (
    (0.0, AUTO_FACTOR), (6.0, AUTO_FACTOR), *(("auto", factor) for factor in (4, 6, 8, 12)),
)  # fmt: skip
TIMED: tuple[Threshold, ...] = (0.0, 6.0, "auto")
#: Elements of a run: what the widest kernel of a row loads at once is a small multiple of it.
RUN = 16
#: Rows in which a line is read by a model for masked words; each masks another of as many tokens.
MASKED = 8


class Rule(Scheme):
    """The contract at a threshold, with any factor of the automatic rule, and what it keeps."""

    source, fault = "docs/numerics.md", ""

    def __init__(self, threshold: Threshold, factor: int) -> None:
        self.name = self.title = f"auto, {factor}" if threshold == "auto" else f"{threshold:g}"
        self._code, self._factor = threshold_code(threshold), factor
        self.runs = self.kept_runs = 0

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """As the reference; the factor is a constant there, and no setting of anything."""
        codes, scales = reference.quantize_weight(layer.weight, layer.name)
        with patch.object(outliers, "AUTO_FACTOR", self._factor):
            y = reference.linear(x, codes, scales, layer.bias, self._code)
            q, _ = reference.quantize_rows(x, self._code)
        kept = reference.split_digits(q)[1] != 0
        runs = torch.nn.functional.pad(kept, (0, -kept.shape[1] % RUN)).unflatten(1, (-1, RUN)).any(2)
        self.runs, self.kept_runs = self.runs + runs.numel(), self.kept_runs + int(runs.sum())
        return y, kept


@dataclass(frozen=True)
class Row:
    """One rule on one model; shares are within [0, 1]."""

    model: str
    rule: str
    perplexity: float
    kl: float
    top1: float
    elements: float
    columns: float
    runs: float


class Model:
    """A float32 model, its text in pieces that are read by themselves, and the logits that are scored."""

    def __init__(self, name: str, text: Path | None, tokens: int) -> None:
        found = find_float_model(name, "this benchmark")
        tokenizer, content = load_tokenizer(found.path), read_text(text)[1]
        kind = next(iter(read_json(found.path / "config.json").get("architectures") or [""]))
        self.masked = kind.endswith("ForMaskedLM")
        if self.masked:
            from transformers import AutoModelForMaskedLM

            self.module = AutoModelForMaskedLM.from_pretrained(found.path).eval()
            lines = (first_tokens(tokenizer, line, tokens) for line in content.splitlines() if line.strip())
            self.pieces = list(lines)
            self.logits = _masked_logits(self.module, tokenizer.mask_token_id)
        else:
            self.module = load_float(found, Dtype.float32)
            self.pieces = [first_tokens(tokenizer, content, tokens)]
            self.logits = logits_of(self.module)

    def inject(self, columns: int, factor: int) -> None:
        """Give the model outlier columns, by a power of two, without changing what it computes."""
        inputs = {"input_ids": self.pieces[0][None, :16], "use_cache": False}
        inject_outliers(self.module, inputs, columns, factor)


def _masked_logits(module: Any, mask: int) -> Callable[[Tensor], Tensor]:
    """A model for masked words as one that predicts the next: token ids `[1, L]` to `[1, L, V]`, where the
    logits of each masked token stand one position earlier."""

    def logits(ids: Tensor) -> Tensor:
        places = torch.arange(1, ids.shape[1])
        rows = ids.repeat(MASKED, 1)
        rows[places % MASKED, places] = mask
        with torch.inference_mode():
            found: Tensor = module(rows).logits
        return torch.cat([found[places % MASKED, places], found[:1, -1]])[None]

    return logits


def measure(name: str, model: Model, context: int) -> Iterator[Row]:
    """Every rule on one model. context: tokens of a window."""
    layers = plan_conversion(model.module, None).convert
    for rule in (Rule(*each) for each in RULES):
        usage: dict[str, Any] = {}

        @contextmanager
        def scheme(rule: Rule = rule, usage: dict[str, Any] = usage) -> Iterator[None]:
            with applied(model.module, layers, rule, usage):
                yield

        def scored(window: Tensor, scheme: Any = scheme) -> Tensor:
            with scheme():
                return model.logits(window)

        both = {"float": model.logits, "rule": scored}
        scores = [evaluate(both, ids, context, "float")["rule"] for ids in model.pieces]
        count = sum(score.scored for score in scores)

        def mean(values: Iterator[float], count: int = count, scores: Any = scores) -> float:
            return sum(value * score.scored for value, score in zip(values, scores, strict=True)) / count

        perplexity = float(torch.tensor(sum(s.nll for s in scores) / count, dtype=torch.float64).exp())
        values, columns = (
            sum(getattr(u, f"kept_{what}") for u in usage.values())
            / sum(getattr(u, what) for u in usage.values())
            for what in ("values", "columns")
        )
        yield Row(
            name,
            rule.name,
            perplexity,
            mean(s.kl for s in scores),
            mean(s.top1 for s in scores),
            values,
            columns,
            rule.kept_runs / rule.runs,
        )


def time_layers(model: Model, rows: int, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Median seconds of all int8 layers together, by threshold. rows: of each layer's input."""
    quantize_model(model.module, Int8Config("auto"))
    module = model.module.to(dtype)
    inputs: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(_: Any, args: tuple[Tensor]) -> None:
            inputs[name] = args[0].reshape(-1, args[0].shape[-1])[-rows:].clone()

        return hook

    layers = {n: m for n, m in module.named_modules() if isinstance(m, Int8Linear)}
    hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    model.logits(model.pieces[0][None, : max(rows, 64)])
    for hook in hooks:
        hook.remove()
    given = [(layers[name], x) for name, x in inputs.items()]

    def prepare(threshold: Threshold) -> Callable[[], object]:
        set_threshold(module, threshold)
        return run

    def run() -> None:
        with torch.inference_mode():
            for layer, x in given:
                layer(x)

    turns = {str(t): Candidate(lambda t=t: prepare(t)) for t in TIMED}
    return take_turns(turns, rounds, float("inf"))[0]


def main() -> None:
    """The table, and the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2", help="a float model: a folder, or smollm2")
    parser.add_argument(
        "--inject",
        action="append",
        type=columns_by_factor,
        default=[],
        metavar="COLUMNSxFACTOR",
        help="also with these",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8; the shipped text if not given")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text, or of each line")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--time", action="store_true", help="time the kernels; accuracy is left out")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 512], help="with --time")
    parser.add_argument("--rounds", type=int, default=31, help="with --time")
    parser.add_argument("--dtype", default="float32", help="with --time: of what stays float")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    if options.time:
        print("| model | rows | 6.0, ms | 0 / 6.0 | auto / 6.0 |\n|---|---|---|---|---|", flush=True)
    else:
        print("| model | rule | perplexity | KL | same first choice | elements | columns | runs of 16 |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
    for injection in (None, *options.inject):
        name = Path(options.model).name + (", {}x{}".format(*injection) if injection else "")
        for rows in options.rows if options.time else [0]:
            model = Model(options.model, options.text, options.tokens)
            if injection:
                model.inject(*injection)
            if options.time:
                seconds = time_layers(model, rows, getattr(torch, options.dtype), options.rounds)
                base = seconds["6.0"]
                ratios = " | ".join(f"{seconds[t] / base:.3f}" for t in ("0.0", "auto"))
                print(f"| {name} | {rows} | {base * 1e3:.2f} | {ratios} |", flush=True)
                results.append({"model": name, "rows": rows, "dtype": options.dtype, "seconds": seconds})
                continue
            for row in measure(name, model, options.context):
                shares = " | ".join(
                    f"{share:.2%}" for share in (row.top1, row.elements, row.columns, row.runs)
                )
                print(
                    f"| {row.model} | {row.rule} | {row.perplexity:.3f} | {row.kl:.5f} | {shares} |",
                    flush=True,
                )
                results.append(asdict(row))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
