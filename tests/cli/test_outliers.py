"""`llmint8 outliers` reports what the library counts."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmint8.analysis import OutlierRecorder, analyze, evaluate
from llmint8.cli.outliers import linear_layers
from llmint8.convert.outlier_columns import sample_text
from tiny import save_tiny_checkpoint, tiny_mixture, tiny_tokenizer

LAYERS = 4


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model in which dimension 5 of the hidden state is large in all but the last block."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("planted") / "model", num_hidden_layers=LAYERS)
    tensors = load_file(folder / "model.safetensors")
    for index in range(LAYERS - 1):
        tensors[f"model.layers.{index}.input_layernorm.weight"][5] = 64.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def library(folder, tokens, threshold):
    """The same by the library alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)(sample_text(), return_tensors="pt")["input_ids"][0, :tokens]
    with torch.inference_mode(), OutlierRecorder(model, linear_layers(model), threshold) as recorder:
        score = evaluate({"m": lambda i: model(i).logits}, ids, 256)["m"]
    return analyze(recorder.statistics, threshold), score.perplexity


def test_json_is_what_the_library_counts(run, planted):
    result = run("outliers", planted, "--tokens", 300, "--threshold", 4, "--json", code=0).json
    report, perplexity = library(planted, 300, 4.0)
    (found,) = result["models"]
    assert {key: found[key] for key in report.to_dict()} == report.to_dict()
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-6)
    assert (result["tokens"], result["threshold"]) == (300, 4.0)
    assert len(found["layers"]) == LAYERS * 7
    assert all(layer["positions"] == 300 for layer in found["layers"])


def test_the_planted_dimension_is_shared(run, planted):
    (found,) = run("outliers", planted, "--tokens", 100, "--json", code=0).json["models"]
    (dimension,) = found["shared_dimensions"]
    assert (dimension["index"], dimension["layers"]) == (5, (LAYERS - 1) / LAYERS)
    shown = run("outliers", planted, "--tokens", 100, code=0).stdout
    assert "6 % of the positions: 1" in shown
    assert "dimension 5: 75 % of the layers" in shown


def test_the_table_has_a_row_for_each_input_and_all_shows_layers(run, planted):
    shown = run("outliers", planted, "--tokens", 50, code=0).stdout
    for name in ("self_attn.q_proj, k_proj, v_proj", "self_attn.o_proj", "mlp.gate_proj, up_proj"):
        assert name in shown
    assert "model.layers.3.mlp.down_proj" not in shown
    assert "model.layers.3.mlp.down_proj" in run("outliers", planted, "--tokens", 50, "--all", code=0).stdout


def test_layers_of_mostly_outliers_are_named(run, planted):
    shown = run("outliers", planted, "--tokens", 50, "--threshold", "0.001", code=0).stdout
    assert "Most columns are outliers: mlp.down_proj of layer 0 to 3" in shown
    assert "Most columns" not in run("outliers", planted, "--tokens", 50, "--threshold", "1e6", code=0).stdout


def test_an_int8_model_is_measured_as_it_runs(run, float_model, int8_model):
    results = run("outliers", float_model, int8_model, "--tokens", 60, "--json", code=0).json["models"]
    float_result, int8 = results
    assert [layer["name"] for layer in int8["layers"]] == [layer["name"] for layer in float_result["layers"]]
    assert int8["layers"][0]["largest"] == float_result["layers"][0]["largest"]  # before any int8 layer
    assert int8["perplexity"] != float_result["perplexity"]
    assert int8["parameters"] == float_result["parameters"]


def test_several_models_are_compared(run, float_model, planted):
    shown = run("outliers", float_model, planted, float_model, "--tokens", 50, code=0).stdout
    assert shown.count("input of") == 2  # named twice, measured once
    assert "The most common outlier dimension of each model" in shown


def test_files_are_written_whole(run, planted, tmp_path):
    html, png = tmp_path / "report.html", tmp_path / "report.png"
    run("outliers", planted, "--tokens", 50, "--html", html, "--png", png, code=0)
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "model.layers.3.mlp.down_proj" in html.read_text(encoding="utf-8")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(tmp_path.iterdir()) == [html, png]


def test_experts_are_one_layer_and_said_so(run, tmp_path):
    folder = tmp_path / "mixture"
    tiny_mixture().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    outcome = run("outliers", folder, "--tokens", 30, "--json", code=0)
    names = [layer["name"] for layer in outcome.json["models"][0]["layers"]]
    assert "model.layers.0.mlp.experts" in names
    assert "the input of their second layer is not seen" in outcome.stderr


def test_a_short_text_is_used_whole_and_said_so(run, planted, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("abcdef")
    outcome = run("outliers", planted, "--text", file, "--json", code=0)
    assert "the text holds 6 tokens, fewer than the 1024 asked for" in outcome.stderr


def test_a_picture_without_matplotlib_is_refused_before_the_work(run, planted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    outcome = run("outliers", planted, "--png", tmp_path / "a.png")
    assert "pip install 'llmint8[plot]'" in outcome.error
    assert "Loading" not in outcome.stderr


@pytest.mark.parametrize("options", [("--png", "a.jpg"), ("--html", "none/a.html")])
def test_files_that_cannot_be_written_are_refused_before_the_work(run, planted, tmp_path, options):
    outcome = run("outliers", planted, options[0], tmp_path / options[1])
    assert options[0] in outcome.error
    assert "Loading" not in outcome.stderr


def test_all_models_are_found_before_the_first_is_loaded(run, planted, tmp_path):
    outcome = run("outliers", planted, tmp_path / "none")
    assert "none does not exist" in outcome.error
    assert "Loading" not in outcome.stderr


@pytest.mark.parametrize(
    "options", [["--threshold", "0"], ["--threshold", "nan"], ["--tokens", "1"], ["--threshold", "auto"]]
)
def test_bad_options_are_wrong_usage(run, planted, options):
    assert "Error" in run("outliers", planted, *options, code=2).stderr


def test_a_weight_that_breaks_the_model_is_named(run, planted, retensored):
    def break_weight(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")

    error = run("outliers", retensored(planted, break_weight), "--tokens", 20).error
    assert error.endswith("returned logits that are not finite: its weights hold a NaN or overflow")
