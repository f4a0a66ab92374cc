"""`llmint8 generate` writes what the library generates."""

from __future__ import annotations

import re

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmint8
from llmint8 import Int8Config

PROMPT = "The quick brown fox"


def expected(folder, threshold, tokens, **settings):
    """The continuation by the library alone: the float model converted in memory."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    llmint8.quantize_model(model, Int8Config(threshold))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=tokens, **settings
    )
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("source", ["float_model", "int8_model"])
@pytest.mark.parametrize("threshold", [None, "0.5", "auto"])
def test_text_of_a_float_and_of_an_int8_folder(run, request, float_model, source, threshold):
    folder = request.getfixturevalue(source)
    options = [] if threshold is None else ["--threshold", threshold]
    outcome = run("generate", folder, PROMPT, "--max-new-tokens", 24, *options, code=0)
    value = {None: 6.0, "0.5": 0.5, "auto": "auto"}[threshold]
    assert outcome.stdout == expected(float_model, value, 24, do_sample=False) + "\n"


def test_speed_goes_to_stderr(run, int8_model):
    outcome = run("generate", int8_model, PROMPT, "--max-new-tokens", 7, code=0)
    figures = r"note: prompt: 19 tokens, [\d.]+ tokens/s; new: 7 tokens, [\d.]+ tokens/s\n"
    assert re.search(figures, outcome.stderr), outcome.stderr
    assert "tokens/s" not in outcome.stdout


def test_one_new_token_has_no_rate(run, int8_model):
    stderr = run("generate", int8_model, PROMPT, "--max-new-tokens", 1, code=0).stderr
    assert stderr.endswith("; new: 1 tokens\n")


def test_a_seed_repeats_a_draw_and_temperature_draws(run, int8_model):
    def draw(seed):
        options = ("--temperature", 2.0, "--seed", seed, "--max-new-tokens", 24)
        return run("generate", int8_model, PROMPT, *options, code=0).stdout

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_dtype_is_that_of_the_loaded_model(run, float_model, monkeypatch):
    import torch

    from llmint8.cli import generate

    seen = []
    load = generate.load_int8
    monkeypatch.setattr(generate, "load_int8", lambda *a: seen.append(load(*a)) or seen[0])
    run("generate", float_model, PROMPT, "--dtype", "bfloat16", "--max-new-tokens", 2, code=0)
    assert seen[0].lm_head.weight.dtype == torch.bfloat16
    assert seen[0].model.layers[0].mlp.up_proj.SCB.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "-1"], "got -1.0"),
        (["--threshold", "nan"], "got nan"),
        (["--threshold", "automatic"], "automatic"),
        (["--threshold", "6,5"], "6,5"),
        (["--dtype", "int8"], "int8"),
        (["--max-new-tokens", "0"], "max-new-tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--seed", "3"], "--temperature"),
    ],
)
def test_bad_options_are_wrong_usage(run, int8_model, options, message):
    outcome = run("generate", int8_model, PROMPT, *options, code=2)
    assert outcome.stdout == ""
    assert message in outcome.stderr


def test_an_empty_prompt_is_refused(run, int8_model):
    assert "the prompt is empty" in run("generate", int8_model, "").error


def test_a_prompt_longer_than_the_model_is_refused(run, int8_model):
    error = run("generate", int8_model, "x" * 250, "--max-new-tokens", 7).error
    assert "250 tokens and 7 new ones exceed the model's 256 positions" in error


def test_it_says_what_it_uses(run, int8_model):
    def stderr(*options):
        return run("generate", int8_model, PROMPT, "--max-new-tokens", 2, *options, code=0).stderr

    assert "note: runs all 2 layers in one call, output head as it was" in stderr()
    assert "note: runs all 2 layers in one call, int8 output head" in stderr("--head", "int8")
    assert "note: runs the model's own forward" in stderr("--no-optimize")
    outcome = run("generate", int8_model, PROMPT, "--head", "int8", "--no-optimize", code=2)
    assert "--no-optimize" in outcome.stderr
