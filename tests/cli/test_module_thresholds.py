"""`--module-threshold` of quantize, generate and eval, for float and for int8 models, and `inspect`."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from llmint8.cli import generate
from llmint8.nn import Int8Linear

OPTIONS = "--threshold", "2", "--module-threshold", "layers.0.mlp=0", "--module-threshold", "down_proj=auto"


def expected(name: str) -> float | str:
    if "layers.0.mlp" in name:
        return 0.0
    return "auto" if "down_proj" in name else 2.0


def thresholds(model) -> dict[str, float | str]:
    return {name: m.threshold for name, m in model.named_modules() if isinstance(m, Int8Linear)}


def test_quantize_writes_them_and_inspect_shows_them(run, float_model, tmp_path):
    report = run("quantize", float_model, tmp_path / "out", *OPTIONS, "--json", code=0).json
    pairs = [["layers.0.mlp", 0.0], ["down_proj", "auto"]]
    assert report["config"]["module_thresholds"] == pairs
    found = thresholds(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert len(found) == 14
    assert found == {name: expected(name) for name in found}
    assert (
        run("inspect", tmp_path / "out", "--json", code=0).json["quantization"]["module_thresholds"] == pairs
    )
    shown = run("inspect", tmp_path / "out", code=0).stdout
    assert "module_thresholds [['layers.0.mlp', 0.0], ['down_proj', 'auto']]" in shown


@pytest.mark.parametrize("source", ["float_model", "int8_model"])
def test_generate_sets_them(run, request, source, monkeypatch):
    seen = []
    load = generate.load_int8
    monkeypatch.setattr(generate, "load_int8", lambda *a: seen.append(load(*a)) or seen[0])
    run("generate", request.getfixturevalue(source), "Once", *OPTIONS, "--max-new-tokens", 1, code=0)
    found = thresholds(seen[0])
    assert found == {name: expected(name) for name in found}


def test_eval_sets_them_on_top_of_what_is_saved(run, float_model, int8_model):
    options = "--tokens", 64, "--module-threshold", "down_proj=0.01", "--json"
    plain = run("eval", int8_model, "--tokens", 64, "--json", code=0).json
    results = [run("eval", model, *options, code=0).json for model in (int8_model, float_model)]
    assert [r["threshold"] for r in results] == ["by layer", "by layer"]
    assert results[0]["perplexity"] == results[1]["perplexity"] != plain["perplexity"]


@pytest.mark.parametrize("given", ["down_proj", "=1", "down_proj=", "down_proj=-1", "down_proj=AUTO"])
def test_what_is_no_pair_of_name_and_threshold(run, float_model, tmp_path, given):
    outcome = run("quantize", float_model, tmp_path / "out", "--module-threshold", given, code=2)
    assert "Invalid value for '--module-threshold'" in outcome.stderr


@pytest.mark.parametrize("source", ["float_model", "int8_model"])
def test_a_name_without_a_layer(run, request, source):
    folder = request.getfixturevalue(source)
    error = run("generate", folder, "Once", "--module-threshold", "up_porj=1").error
    assert "module_thresholds: 'up_porj' matches no int8 layer; names look like 'model.layers.0" in error
