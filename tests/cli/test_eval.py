"""`llmint8 eval` reports what the library computes."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmint8
from llmint8 import Int8Config
from llmint8.analysis import evaluate
from llmint8.convert.outlier_columns import sample_text


def library(float_model, text, tokens, context, threshold):
    """The scores by the library alone."""
    original, int8 = (AutoModelForCausalLM.from_pretrained(float_model) for _ in range(2))
    llmint8.quantize_model(int8, Int8Config(threshold))
    ids = AutoTokenizer.from_pretrained(float_model)(text, return_tensors="pt")["input_ids"][0, :tokens]
    with torch.inference_mode():
        models = {"float": lambda i: original(i).logits, "int8": lambda i: int8(i).logits}
        return evaluate(models, ids, context, "float")


@pytest.mark.parametrize("source", ["float_model", "int8_model"])
def test_scores_on_the_shipped_text(run, request, float_model, source):
    options = ("--tokens", 300, "--against", float_model, "--threshold", "auto", "--json")
    result = run("eval", request.getfixturevalue(source), *options, code=0).json
    scores = library(float_model, sample_text(), 300, 256, "auto")
    assert result["perplexity"] == pytest.approx(scores["int8"].perplexity, rel=1e-6)
    assert result["float_perplexity"] == pytest.approx(scores["float"].perplexity, rel=1e-6)
    assert result["kl"] == pytest.approx(scores["int8"].kl, rel=1e-3)
    assert result["top1_agreement"] == scores["int8"].top1
    assert (result["tokens"], result["context"], result["scored"]) == (300, 256, 298)
    assert result["threshold"] == "auto"
    assert result["kl"] > 0


def test_text_context_and_the_saved_threshold(run, float_model, int8_model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Äpfel und Birnen. " * 20, encoding="utf-8")
    result = run("eval", int8_model, "--text", file, "--tokens", 100, "--context", 40, "--json", code=0).json
    score = library(float_model, file.read_text(encoding="utf-8"), 100, 40, 6.0)["int8"]
    assert result["perplexity"] == pytest.approx(score.perplexity, rel=1e-6)
    assert result["threshold"] == 6.0
    assert result["text"] == str(file)
    assert result["against"] is result["kl"] is result["float_perplexity"] is None


def test_the_table_shows_what_json_holds(run, float_model, int8_model):
    options = ("--tokens", 64, "--against", float_model)
    result = run("eval", int8_model, *options, "--json", code=0).json
    shown = run("eval", int8_model, *options, code=0).stdout
    for value in (f"{result['perplexity']:.4f}", f"{result['kl']:.5f}", f"{result['top1_agreement']:.2%}"):
        assert value in shown
    assert "KL" not in run("eval", int8_model, "--tokens", 64, code=0).stdout


def test_strided_windows_and_batches(run, float_model, int8_model):
    options = ("--tokens", 200, "--context", 64, "--stride", 24, "--against", float_model, "--json")
    result = run("eval", int8_model, *options, code=0).json
    original, int8 = (AutoModelForCausalLM.from_pretrained(float_model) for _ in range(2))
    llmint8.quantize_model(int8, Int8Config(6.0))
    ids = AutoTokenizer.from_pretrained(float_model)(sample_text())["input_ids"][:200]
    with torch.inference_mode():
        models = {"float": lambda i: original(i).logits, "int8": lambda i: int8(i).logits}
        scores = evaluate(models, torch.tensor(ids), 64, "float", stride=24)
    assert result["scored"] == 199
    assert (result["context"], result["stride"]) == (64, 24)
    assert result["perplexity"] == pytest.approx(scores["int8"].perplexity, rel=1e-6)
    assert result["kl"] == pytest.approx(scores["int8"].kl, rel=1e-3)
    batched = run("eval", int8_model, *options, "--batch-size", 3, code=0).json
    assert batched["perplexity"] == pytest.approx(result["perplexity"], rel=1e-5)
    assert batched["scored"] == 199


def test_bytes_of_the_text_that_was_scored(run, float_model, int8_model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Äpfel und Birnen. " * 20, encoding="utf-8")  # 19 bytes and as many tokens a time
    options = ("--text", file, "--tokens", 38, "--context", 19, "--against", float_model, "--json")
    result = run("eval", int8_model, *options, code=0).json
    # The first token of either window is not scored: it is the first of two that share Ä, and has its bytes.
    assert (result["scored"], result["scored_bytes"]) == (36, 34)
    for kind in ("", "float_"):
        nll = 36 * math.log(result[f"{kind}perplexity"])
        assert result[f"{kind}bits_per_byte"] == pytest.approx(nll / math.log(2) / 34, rel=1e-9)
        assert result[f"{kind}byte_perplexity"] == pytest.approx(math.exp(nll / 34), rel=1e-9)


def test_a_tokenizer_without_offsets_gives_nothing_by_byte(run, int8_model, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", property(lambda self: False))
    outcome = run("eval", int8_model, "--tokens", 20, "--json", code=0)
    assert outcome.json["bits_per_byte"] is outcome.json["scored_bytes"] is None
    assert "nothing is given by byte" in outcome.stderr
    assert "bits per byte" not in run("eval", int8_model, "--tokens", 20, code=0).stdout


def test_a_stride_beyond_the_context_is_refused(run, int8_model):
    error = run("eval", int8_model, "--context", 16, "--stride", 17).error
    assert "stride must be from 1 to the context of 16 tokens, got 17" in error


def test_a_short_text_is_used_whole_and_said_so(run, int8_model, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("abcdef")
    outcome = run("eval", int8_model, "--text", file, "--json", code=0)
    assert outcome.json["tokens"] == 6
    assert "the text holds 6 tokens, fewer than the 2000 asked for" in outcome.stderr


@pytest.mark.parametrize(
    ("content", "message"), [(b"a", "the text holds 1 tokens"), (b"\xff\xfe\xff", "UTF-8")]
)
def test_a_text_that_cannot_be_evaluated(run, int8_model, tmp_path, content, message):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    assert message in run("eval", int8_model, "--text", file).error


def test_a_missing_text_is_named(run, int8_model, tmp_path):
    assert f"{tmp_path / 'none'} cannot be read" in run("eval", int8_model, "--text", tmp_path / "none").error


def test_the_reference_must_be_float(run, int8_model):
    assert (
        "is int8 already; --against takes the float model"
        in run("eval", int8_model, "--against", int8_model).error
    )


def test_a_reference_of_another_vocabulary_is_refused(run, int8_model, tmp_path):
    from tiny import save_tiny_checkpoint

    other = save_tiny_checkpoint(tmp_path / "other", vocab_size=300)
    error = run("eval", int8_model, "--against", other, "--tokens", 20).error
    assert "int8 has a vocabulary of 258 tokens, the reference 300" in error


def test_a_context_beyond_the_model_is_refused(run, int8_model):
    assert "--context 257 exceeds the 256 positions" in run("eval", int8_model, "--context", 257).error


@pytest.mark.parametrize("options", [["--tokens", "1"], ["--context", "1"], ["--tokens", "many"]])
def test_bad_options_are_wrong_usage(run, int8_model, options):
    assert options[0] in run("eval", int8_model, *options, code=2).stderr
