"""`llmint8 eval --tasks`: what an int8 model, and the float one, answer to tasks of lm-eval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from llmint8.cli.models import (
    find_float_model,
    find_model,
    load_float,
    load_int8,
    load_tokenizer,
    threshold_of,
)
from llmint8.cli.options import Dtype
from llmint8.cli.output import note, print_json, progress, stdout, working
from llmint8.cli.quiet import quiet_transformers
from llmint8.errors import InputError

if TYPE_CHECKING:
    from llmint8.integrations.task_results import Difference, Metric

#: Columns of a table that is printed into a file or a pipe.
_WIDTH = 110
#: Values below it are shown with four decimals.
_LARGE = 10_000
_OFFLINE = "HF_HUB_OFFLINE"


@dataclass(frozen=True)
class Evaluated:
    """Which models are evaluated, and how the result is printed: what texts and tasks have in common."""

    model: str
    against: str | None
    threshold: Any
    module_threshold: Any
    dtype: Dtype
    batch_size: int
    json: bool


def answer_tasks(
    wanted: Evaluated,
    tasks: str,
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    download: bool,
) -> None:
    """Run the tasks with one model after the other, so that only one is in memory, and print the results.

    tasks: names with commas between them. download: whether data may be fetched.
    Raises LLMInt8Error for anything that the user can set right.
    """
    _set_offline(download)
    quiet_transformers()
    from llmint8.integrations.lm_eval import TaskSettings, evaluate_tasks, require_lm_eval
    from llmint8.integrations.task_results import TWO_SIDED_95, compare_metrics

    require_lm_eval()
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    settings = TaskSettings(include_path, limit, num_fewshot, wanted.batch_size)
    found = find_model(wanted.model)
    reference = None if wanted.against is None else find_float_model(wanted.against, "--against")
    with working(f"Loading {wanted.model}"):
        tokenizer = load_tokenizer(found.path)
        model = load_int8(found, wanted.threshold, wanted.dtype, wanted.module_threshold)
    threshold = threshold_of(model)
    with progress("Answering, int8") as step:
        int8 = evaluate_tasks(model, tokenizer, names, settings, step)
    if int8.truncated:
        note(f"{int8.truncated} prompts are longer than the model takes, and lost their beginning")
    differences = None
    if reference is not None:
        del model
        with working(f"Loading {wanted.against}"):
            model = load_float(reference, Dtype.float32)
        with progress("Answering, float") as step:
            original = evaluate_tasks(model, tokenizer, names, settings, step)
        differences = compare_metrics(int8.metrics, original.metrics)
    if wanted.json:
        print_json(
            {
                "model": wanted.model,
                "against": wanted.against,
                "threshold": threshold,
                "lm_eval": int8.lm_eval,
                "limit": limit,
                "num_fewshot": num_fewshot,
                "truncated": int8.truncated,
                "results": [_described(d) for d in differences]
                if differences is not None
                else [_described_metric(m) | {"float": None, "difference": None} for m in int8.metrics],
            }
        )
        return
    console = stdout()
    if not console.is_terminal:
        console.width = _WIDTH
    title = f"{wanted.model}, threshold {threshold}" + (f", against {wanted.against}" if reference else "")
    console.print(_table(title, int8.metrics, differences))
    remark = f"lm-eval {int8.lm_eval}. ±: standard error."
    if differences is not None:
        remark += (
            " Difference: int8 minus float, document by document (groups: from both errors); within: at most "
            f"{TWO_SIDED_95} of its errors."
        )
    console.print(remark, highlight=False, markup=False)


def _set_offline(download: bool) -> None:
    """Allow downloads before the libraries that do them are imported: they look once."""
    if not download:
        return
    if os.environ.get(_OFFLINE, "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise InputError(f"--download, but {_OFFLINE} forbids it; unset it, or leave --download out")
    os.environ[_OFFLINE] = "0"


def _described_metric(metric: Metric) -> dict[str, Any]:
    return {
        "task": metric.task,
        "metric": metric.name,
        "documents": metric.documents,
        "higher_is_better": metric.higher_is_better,
        "int8": {"value": metric.value, "stderr": metric.stderr},
    }


def _described(difference: Difference) -> dict[str, Any]:
    reference = difference.reference
    return _described_metric(difference.metric) | {
        "float": {"value": reference.value, "stderr": reference.stderr},
        "difference": {
            "value": difference.value,
            "stderr": difference.stderr,
            "paired": difference.paired,
            "within": difference.within,
        },
    }


def _table(title: str, metrics: Sequence[Metric], differences: Sequence[Difference] | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("task")
    table.add_column("metric")
    for heading in ("documents", "int8", *(() if differences is None else ("float", "difference", "within"))):
        table.add_column(heading, justify="right", no_wrap=True)
    for row, metric in enumerate(metrics):
        arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
        cells = [
            metric.task,
            metric.name + arrow,
            f"{metric.documents:,}",
            _value(metric.value, metric.stderr),
        ]
        if differences is not None:
            difference = differences[row]
            reference = difference.reference
            cells += [
                _value(reference.value, reference.stderr),
                _value(difference.value, difference.stderr, sign="+"),
                {True: "yes", False: "no", None: "?"}[difference.within],
            ]
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _value(value: float, stderr: float | None, sign: str = "") -> str:
    # A perplexity may have any magnitude.
    form = ",.4f" if abs(value) < _LARGE else ".5g"
    error = "" if stderr is None else f" ± {stderr:{form}}"
    return f"{value:{sign}{form}}{error}"
