"""`llmint8 eval --tasks` reports what the library computes, and refuses what it cannot do; no network."""

from __future__ import annotations

import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmint8
from llmint8 import Int8Config
from llmint8.integrations.lm_eval import TaskSettings, evaluate_tasks
from llmint8.integrations.task_results import compare_metrics
from offline_tasks import write_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), ["a", "b", "c"])


@pytest.fixture(autouse=True)
def datasets_in(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def library(float_model, folder, tasks, threshold, **settings):
    """The differences by the library alone."""
    original, int8 = (AutoModelForCausalLM.from_pretrained(float_model) for _ in range(2))
    llmint8.quantize_model(int8, Int8Config(threshold))
    tokenizer = AutoTokenizer.from_pretrained(float_model)
    wanted = TaskSettings(folder, **settings)
    scores = [evaluate_tasks(m, tokenizer, tasks, wanted, lambda *_: None).metrics for m in (int8, original)]
    return compare_metrics(*scores)


@pytest.mark.parametrize("source", ["float_model", "int8_model"])
def test_values_errors_and_differences(run, request, float_model, folder, source):
    tasks = ["last_word", "choices", "copying"]
    result = run(
        "eval", request.getfixturevalue(source), "--against", float_model, "--tasks", ",".join(tasks),
        "--include-path", folder, "--threshold", "auto", "--batch-size", 2, "--json", code=0,
    ).json  # fmt: skip
    expected = library(float_model, folder, tasks, "auto", batch_size=2)
    assert [(row["task"], row["metric"]) for row in result["results"]] == [
        ("last_word", "perplexity"),
        ("last_word", "acc"),
        ("choices", "acc"),
        ("choices", "acc_norm"),
        ("copying", "exact_match"),
    ]
    for row, difference in zip(result["results"], expected, strict=True):
        assert row["int8"] == {"value": difference.metric.value, "stderr": difference.metric.stderr}
        assert row["float"] == {"value": difference.reference.value, "stderr": difference.reference.stderr}
        assert row["difference"] == {
            "value": difference.value,
            "stderr": difference.stderr,
            "paired": True,
            "within": difference.within,
        }
        assert row["documents"] == difference.metric.documents
    assert result["results"][0]["difference"]["value"] != 0
    assert result["threshold"] == "auto"
    assert result["against"] == str(float_model)
    assert result["lm_eval"].startswith("0.4.")


def test_the_table_shows_what_json_holds(run, float_model, int8_model, folder):
    options = ("--tasks", "choices", "--include-path", folder, "--limit", 3)
    result = run("eval", int8_model, *options, "--json", code=0).json
    assert (result["limit"], result["num_fewshot"], result["against"]) == (3, None, None)
    assert all(
        row["float"] is row["difference"] is None and row["documents"] == 3 for row in result["results"]
    )
    outcome = run("eval", int8_model, *options, "--against", float_model, code=0)
    for row in result["results"]:
        assert f"{row['int8']['value']:.4f} ± {row['int8']['stderr']:.4f}" in outcome.stdout
    for word in ("acc_norm ↑", "difference", "within", "yes", "lm-eval 0.4."):
        assert word in outcome.stdout
    assert "difference" not in run("eval", int8_model, *options, code=0).stdout
    assert "Answering, int8\n" in outcome.stderr
    assert "Answering, float\n" in outcome.stderr


def test_prompts_that_are_cut_are_said(run, edited, float_model, folder):
    outcome = run(
        "eval", edited(float_model, max_position_embeddings=24), "--tasks", "last_word",
        "--include-path", folder, "--json", code=0,
    )  # fmt: skip
    assert outcome.json["truncated"] == 3
    assert "3 prompts are longer than the model takes, and lost their beginning" in outcome.stderr


def test_examples_change_the_prompt(run, int8_model, folder):
    def perplexity(*options):
        result = run(
            "eval", int8_model, "--tasks", "last_word", "--include-path", folder, "--json", *options, code=0
        ).json
        return result["results"][0]["int8"]["value"]

    assert perplexity() == perplexity("--num-fewshot", 0) != perplexity("--num-fewshot", 1)


def test_without_lm_eval_the_remedy_is_named(run, int8_model, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    error = run("eval", int8_model, "--tasks", "choices", "--include-path", folder).error
    assert "pip install 'llmint8[eval]'" in error


def test_downloads_are_not_allowed_twice(run, int8_model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = run("eval", int8_model, "--tasks", "lambada_openai", "--download").error
    assert "--download, but HF_HUB_OFFLINE forbids it" in error


def test_a_folder_that_is_none(run, int8_model, tmp_path):
    error = run("eval", int8_model, "--tasks", "choices", "--include-path", tmp_path / "none").error
    assert f"{tmp_path / 'none'} is no folder" in error


@pytest.mark.parametrize(
    "options",
    [
        ["--include-path", "x"],
        ["--limit", "3"],
        ["--num-fewshot", "0"],
        ["--download"],
        ["--tasks", "a", "--text", "book.txt"],
        ["--tasks", "a", "--tokens", "50"],
        ["--tasks", "a", "--context", "50"],
        ["--tasks", "a", "--stride", "50"],
        ["--tasks", "a", "--limit", "0"],
        ["--batch-size", "0"],
    ],
)
def test_options_that_would_do_nothing_are_wrong_usage(run, int8_model, options):
    name = next(option for option in reversed(options) if option.startswith("--"))
    assert name in run("eval", int8_model, *options, code=2).stderr
