"""Three small tasks of lm-eval in a folder, with data of their own: nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

#: The last word of a passage is to be predicted.
PASSAGES = [
    ("The cat sat on the", "mat"),
    ("She opened the door and saw the", "sea"),
    ("One, two, three,", "four"),
    ("All that glitters is not", "gold"),
    ("They sailed for a year and a", "day"),
]
#: A question, its answers, and the number of the right one.
QUESTIONS = [
    ("The colour of snow is", ["white", "black as coal"], 0),
    ("Two and two are", ["five", "four", "a great many"], 1),
    ("Water is", ["wet", "dry"], 0),
    ("A week has", ["eight days", "seven days", "no days"], 1),
]
PROMPTS = ["Once upon a time", "In the beginning", "It was a dark night"]


def write_tasks(folder: Path, answers: list[str]) -> Path:
    """Write tasks "last_word" (loglikelihood), "choices" (multiple choice) and "copying" (generation) and a
    group "small" of the first two. answers: what "copying" wants for each of PROMPTS."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder,
        {
            "task": "last_word",
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{' ' + word}}",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
        },
        [{"text": text, "word": word} for text, word in PASSAGES],
    )
    _write(
        folder,
        {
            "task": "choices",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{answers}}",
            "doc_to_target": "{{right}}",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in ("acc", "acc_norm")
            ],
        },
        [{"question": q, "answers": a, "right": right} for q, a, right in QUESTIONS],
    )
    _write(
        folder,
        {
            "task": "copying",
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        [{"prompt": prompt, "answer": answer} for prompt, answer in zip(PROMPTS, answers, strict=True)],
    )
    group = {
        "group": "small",
        "task": ["last_word", "choices"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean"}],
        "metadata": {"version": 1.0},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(group))
    return folder


def _write(folder: Path, task: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    """A task file that names its data by a path relative to the folder."""
    name = task["task"]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | data))
