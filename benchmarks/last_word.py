"""The last word of passages of the Jargon File, a task of lm-eval without a network, for forms of a model.

    python benchmarks/last_word.py                       # SmolLM2, the model of the demo
    python benchmarks/last_word.py --inject 6x64         # with outlier columns like those of a large model
    python benchmarks/last_word.py --write my-tasks      # only the task files, for `llmint8 eval --tasks`

Each document is the last word of a sentence or clause with the 40 words before it, and the model predicts it,
as in LAMBADA (Paperno et al., arXiv 1606.06031). Unlike there, nobody chose passages whose end follows from
their beginning, so that nobody could guess many of them: the numbers say how forms of a model differ, not how
good it is. A prompt is a batch, which is what bitsandbytes' rule pools columns over.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from llmint8.analysis.inject import columns_by_factor, inject_outliers
from llmint8.cli.models import find_float_model, load_float, load_tokenizer
from llmint8.cli.options import Dtype
from llmint8.config import Int8Config
from llmint8.convert.outlier_columns import sample_text

TASK = "jargon_last_word"
#: Words of a passage before the one that is predicted, and letters that this one has at least.
WORDS, LETTERS = 40, 4
YAML = """\
task: jargon_last_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: jargon_last_word.jsonl
test_split: test
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: "{{' ' + word}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def passages() -> list[dict[str, str]]:
    """Every end of a sentence or clause that is a plain word and has enough words before it."""
    words = sample_text().split()
    found = []
    for end, word in enumerate(words):
        last = word.rstrip(".,;:!?")
        if end >= WORDS and last != word and last.isalpha() and last.islower() and len(last) >= LETTERS:
            found.append({"text": " ".join(words[end - WORDS : end]), "word": last})
    return found


def write_task(folder: Path) -> None:
    """The task file and its data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{TASK}.yaml").write_text(YAML)
    lines = (json.dumps(passage) + "\n" for passage in passages())
    (folder / f"{TASK}.jsonl").write_text("".join(lines))


def forms(model: Any) -> list[tuple[str, Any, Any]]:
    """Name, model, and what holds while it runs. The scheme of bitsandbytes is emulated, int8 is real."""
    from llmint8.analysis.schemes import applied, schemes_named
    from llmint8.convert import plan_conversion, quantize_model, set_threshold

    int8, second_digits = copy.deepcopy(model), copy.deepcopy(model)
    quantize_model(int8)
    quantize_model(second_digits, Int8Config("auto", outlier_weights="int16"))
    layers = plan_conversion(model, None).convert
    (scheme,) = schemes_named(["bitsandbytes"])

    def threshold(value: Any) -> Any:
        return lambda: contextlib.nullcontext(set_threshold(int8, value))

    return [
        ("float32", model, contextlib.nullcontext),
        ("bitsandbytes' rule, 6.0", model, lambda: applied(model, layers, scheme, {})),
        ("llmint8, threshold 6.0", int8, threshold(6.0)),
        ("llmint8, threshold auto", int8, threshold("auto")),
        ("llmint8, auto, int16", second_digits, contextlib.nullcontext),
    ]


def table(model: Any, tokenizer: Any, folder: Path, limit: int | None) -> list[str]:
    """Lines of Markdown."""
    from llmint8.integrations.lm_eval import TaskSettings, evaluate_tasks
    from llmint8.integrations.task_results import compare_metrics

    settings = TaskSettings(folder, limit)
    lines, base = ["| model | metric | value | minus float | within |", "|---|---|---|---|---|"], None
    for name, form, holds in forms(model):
        print(f"{name} ...", flush=True)
        with holds():
            metrics = evaluate_tasks(form, tokenizer, [TASK], settings, lambda *_: None).metrics
        base = base or metrics
        for difference in compare_metrics(metrics, base):
            metric = difference.metric
            cells = [name, metric.name, f"{metric.value:.4f} ± {metric.stderr:.4f}"]
            cells += [
                f"{difference.value:+.4f} ± {difference.stderr:.4f}",
                "yes" if difference.within else "no",
            ]
            lines.append(
                f"| {' | '.join(cells)} |" if metrics is not base else f"| {' | '.join(cells[:3])} | | |"
            )
    return [f"{base[0].documents} documents", "", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a float model: a folder, or smollm2")
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write the task files there, and run nothing"
    )
    parser.add_argument(
        "--inject",
        type=columns_by_factor,
        metavar="COLUMNSxFACTOR",
        help="outlier columns, by a power of two",
    )
    parser.add_argument("--limit", type=int, help="the first documents only")
    options = parser.parse_args()
    if options.write:
        write_task(options.write)
        return
    found = find_float_model(options.model, "this benchmark")
    tokenizer, model = load_tokenizer(found.path), load_float(found, Dtype.float32)
    if options.inject:
        ids = tokenizer(sample_text()[:200], return_tensors="pt")["input_ids"][:, :16]
        inject_outliers(model, {"input_ids": ids, "use_cache": False}, *options.inject)
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder))
        print(*table(model, tokenizer, Path(folder), options.limit), sep="\n")


if __name__ == "__main__":
    main()
