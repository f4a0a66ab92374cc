"""Tasks through lm-eval against the same numbers from the model itself, without a network."""

from __future__ import annotations

import logging
import math
import os
import shutil
import statistics
import sys
import warnings
from pathlib import Path

import pytest
import torch

import llmint8
from llmint8.errors import InputError, LLMInt8Error
from llmint8.integrations.lm_eval import TaskSettings, evaluate_tasks
from llmint8.integrations.lm_eval_tasks import load_tasks
from offline_tasks import PASSAGES, PROMPTS, QUESTIONS, write_tasks
from tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    model = tiny_llama(initializer_range=0.05)
    llmint8.quantize_model(model)
    return model


def written_after(model, prompt, tokens=6):
    """What the model writes, greedily."""
    ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(ids, do_sample=False, max_new_tokens=tokens, pad_token_id=257)
    return TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0]


def likelihood(model, context, continuation):
    """Of the continuation, and whether the model would write it; one token a byte."""
    ids = torch.tensor([TOKENIZER(context + continuation)["input_ids"]])
    count = len(TOKENIZER(continuation)["input_ids"])
    with torch.no_grad():
        log_p = model(ids).logits[0, -count - 1 : -1].double().log_softmax(-1)
    labels = ids[0, -count:]
    return float(log_p.gather(1, labels[:, None]).sum()), bool((log_p.argmax(-1) == labels).all())


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Of the answers that "copying" wants, two are what the model writes."""
    answers = [written_after(model, prompt) for prompt in PROMPTS]
    answers[1] = "something else"
    return write_tasks(tmp_path_factory.mktemp("tasks"), answers)


@pytest.fixture(autouse=True)
def datasets_in(tmp_path, monkeypatch):
    """The cache of data sets lies in a folder of the test; nothing is fetched, whatever the environment."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def answers(model, folder, tasks, progress=lambda *_: None, **settings):
    results = evaluate_tasks(model, TOKENIZER, tasks, TaskSettings(folder, **settings), progress)
    return {(metric.task, metric.name): metric for metric in results.metrics}


def test_likelihoods_of_a_last_word(model, folder):
    metrics = answers(model, folder, ["last_word"])
    expected = [likelihood(model, text, " " + word) for text, word in PASSAGES]
    perplexity = metrics["last_word", "perplexity"]
    assert math.log(perplexity.value) == pytest.approx(
        -statistics.fmean(value for value, _ in expected), rel=1e-5
    )
    deviation = statistics.stdev(value for value, _ in expected) / math.sqrt(len(expected))
    assert perplexity.stderr == pytest.approx(perplexity.value * deviation, rel=1e-4)
    assert perplexity.higher_is_better is False
    assert metrics["last_word", "acc"].value == statistics.fmean(greedy for _, greedy in expected)
    assert metrics["last_word", "acc"].documents == len(PASSAGES)


def test_choices_are_those_of_the_largest_likelihood(model, folder):
    metrics = answers(model, folder, ["choices"])
    likelihoods = [[likelihood(model, q, " " + a)[0] for a in choices] for q, choices, _ in QUESTIONS]
    best = [values.index(max(values)) for values in likelihoods]
    right = [float(b == r) for b, (_, _, r) in zip(best, QUESTIONS, strict=True)]
    assert metrics["choices", "acc"].value == statistics.fmean(right)
    assert metrics["choices", "acc"].influences == tuple(right)
    assert metrics["choices", "acc"].stderr == pytest.approx(statistics.stdev(right) / 2)
    by_length = [
        [value / len(a) for value, a in zip(values, choices, strict=True)]
        for values, (_, choices, _) in zip(likelihoods, QUESTIONS, strict=True)
    ]
    best = [values.index(max(values)) for values in by_length]
    right = [float(b == r) for b, (_, _, r) in zip(best, QUESTIONS, strict=True)]
    assert metrics["choices", "acc_norm"].value == statistics.fmean(right)


def test_generation_is_that_of_the_model(model, folder):
    (metric,) = answers(model, folder, ["copying"]).values()
    assert metric.name == "exact_match"
    assert metric.influences == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("size", [2, 3, 64])
def test_results_do_not_depend_on_the_batch_size(model, folder, size):
    tasks = ["last_word", "choices", "copying"]
    one, many = answers(model, folder, tasks), answers(model, folder, tasks, batch_size=size)
    assert list(one) == list(many)
    for name, metric in one.items():
        if name[1] == "perplexity":  # a sum of floats; the others count
            assert many[name].value == pytest.approx(metric.value, rel=1e-5)
            assert many[name].influences == pytest.approx(metric.influences, rel=1e-4)
        else:
            assert many[name] == metric


def test_limit_progress_and_a_quiet_terminal(model, folder, capfd):
    steps = []
    metrics = answers(model, folder, ["copying", "last_word"], lambda *step: steps.append(step), limit=2)
    assert {metric.documents for metric in metrics.values()} == {2}
    assert steps == [(1, 2), (2, 2)] * 2
    assert capfd.readouterr() == ("", "")


def test_groups_and_patterns(model, folder):
    metrics = answers(model, folder, ["small"])
    group = metrics["small", "acc"]
    parts = [metrics["last_word", "acc"], metrics["choices", "acc"]]
    assert group.value == pytest.approx(sum(p.value * p.documents for p in parts) / 9)
    assert group.documents == 9
    assert group.influences == ()
    assert isinstance(group.stderr, float)
    assert {task for task, _ in answers(model, folder, ["c*", "last_word"])} == {
        "copying",
        "choices",
        "last_word",
    }


def test_examples_in_the_prompt_are_drawn_alike(model, folder):
    def shown(number):
        return answers(model, folder, ["last_word"], num_fewshot=number)["last_word", "perplexity"].value

    assert shown(0) == answers(model, folder, ["last_word"])["last_word", "perplexity"].value
    assert shown(2) == shown(2)
    assert shown(2) != shown(0)


def test_a_prompt_that_is_cut_is_counted(folder):
    results = evaluate_tasks(
        tiny_llama(max_position_embeddings=24),
        TOKENIZER,
        ["last_word"],
        TaskSettings(folder),
        lambda *_: None,
    )
    assert results.truncated == sum(len(text) + len(word) > 24 for text, word in PASSAGES)


def test_nothing_of_the_caller_is_changed(folder):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    llmint8.quantize_model(model)
    model.train()
    model.model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random, before = torch.get_rng_state(), (tokenizer.pad_token, tokenizer.padding_side)
    here, level = Path.cwd(), logging.getLogger("lm_eval").level
    evaluate_tasks(model, tokenizer, ["last_word"], TaskSettings(folder), lambda *_: None)
    assert model.training
    assert model.model.layers[0].training
    assert not model.model.norm.training
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (tokenizer.pad_token, tokenizer.padding_side) == before
    assert (Path.cwd(), logging.getLogger("lm_eval").level) == (here, level)
    assert "DISABLE_MULTIPROC" not in os.environ


def test_a_python_warning_comes_through(model, folder):
    """lm-eval's own remarks do not."""

    def progress(*_):
        warnings.warn("of the model", stacklevel=1)

    with pytest.warns(UserWarning, match="of the model") as caught:
        answers(model, folder, ["copying"], progress)
    assert {str(warning.message) for warning in caught} == {"of the model"}


def test_without_lm_eval_the_remedy_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(LLMInt8Error, match=r"pip install 'llmint8\[eval\]'"):
        evaluate_tasks(model, TOKENIZER, ["last_word"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include_path": Path("/no/such")}, "/no/such is no folder"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"num_fewshot": -1}, "num_fewshot must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        TaskSettings(**settings)


@pytest.fixture
def few_tasks(monkeypatch):
    """As if lm-eval had no tasks but those of LAMBADA: to find all takes it many seconds."""
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    lambada = Path(lm_eval.tasks.__file__).parent / "lambada"

    def few(include_path=None, include_defaults=True):
        paths = [lambada] if include_defaults else []
        return manager(include_path=paths + ([include_path] if include_path else []), include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)


def test_a_task_that_is_not_known_is_named_with_similar_ones(few_tasks):
    with pytest.raises(InputError, match=r"no task 'lambada_opnai'; similar: lambada_openai.*--include-path"):
        load_tasks(["lambada_opnai"], None)


def test_data_that_are_not_here_and_must_not_be_fetched(few_tasks):
    with pytest.raises(InputError, match=r"lambada_openai .*HF_HUB_OFFLINE=1 .*--download.*--include-path"):
        load_tasks(["lambada_openai"], None)


def test_a_folder_that_lacks_the_task_says_what_it_has(folder, few_tasks):
    with pytest.raises(InputError, match=r"no task 'chess'.*defines choices, copying, last_word, small \("):
        load_tasks(["chess"], folder)


def test_own_tasks_need_no_index_of_lm_eval(folder, monkeypatch):
    from lm_eval.tasks import TaskManager

    def without_defaults(include_path, include_defaults=True):
        assert not include_defaults
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", without_defaults)
    tasks = load_tasks(["choices", str(folder / "copying.yaml")], folder)["tasks"]
    assert list(tasks) == ["choices", "copying"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "choices.jsonl").unlink(), "task choices or its data cannot be read"),
        (
            lambda folder: (folder / "choices.jsonl").write_text("{"),
            "task choices or its data cannot be read",
        ),
        (lambda folder: (folder / "choices.jsonl").write_text('{"a": 1}\n'), "choices"),
    ],
)
def test_broken_data_are_named(model, folder, tmp_path, change, message):
    broken = shutil.copytree(folder, tmp_path / "broken")
    change(broken)
    with pytest.raises(InputError, match=message):
        answers(model, broken, ["choices"])


def test_no_task_at_all(model):
    with pytest.raises(InputError, match="no task was given"):
        evaluate_tasks(model, TOKENIZER, [], progress=lambda *_: None)
