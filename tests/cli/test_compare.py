"""`llmint8 compare` reports what the library computes, as JSON, as a table and as a picture."""

from __future__ import annotations

import io
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmint8.analysis.inject import inject_outliers
from llmint8.analysis.schemes import NAMES, compare_schemes, needs_calibration, schemes_named
from llmint8.convert import plan_conversion
from llmint8.convert.outlier_columns import sample_text
from tiny import tiny_mixture, tiny_tokenizer


def library(folder, names, tokens, context, inject=None):
    """The scores by the library alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)(sample_text(), return_tensors="pt")["input_ids"][0, :tokens]
    if inject:
        inject_outliers(model, {"input_ids": ids[None, :8]}, *inject)

    def logits(window):
        with torch.inference_mode():
            return model(window).logits

    layers = plan_conversion(model, None).convert
    return compare_schemes(model, layers, schemes_named(names), logits, ids, context)


def test_all_schemes_on_the_shipped_text(run, float_model):
    result = run("compare", float_model, "--tokens", 60, "--context", 30, "--json", code=0).json
    assert [scheme["name"] for scheme in result["schemes"]] == list(NAMES)
    assert (result["tokens"], result["context"], result["scored"], result["layers"]) == (60, 30, 58, 14)
    assert result["inject"] is None
    assert result["calibration"].startswith("Jargon File")
    names = [name for name in NAMES if not needs_calibration([name])]
    rows = {scheme["name"]: scheme for scheme in result["schemes"]}
    for expected in library(float_model, names, 60, 30):
        row = rows[expected.scheme.name]
        assert row["perplexity"] == pytest.approx(expected.score.perplexity, rel=1e-6)
        assert row["kl"] == pytest.approx(expected.score.kl, rel=1e-3, abs=1e-9)
        assert row["kept_values"] == expected.kept_values
        assert row["kept_columns"] == expected.kept_columns
        assert row["weight_bytes"] == expected.weight_bytes
        assert row["crowded_layers"] == expected.crowded()
    assert rows["smoothquant"]["kl"] > 0
    assert len(rows["llmint8-auto"]["layers"]) == 14


def test_injected_outliers(run, float_model):
    options = ("--tokens", 60, "--schemes", "llmint8-0,float", "--inject", "2x32", "--json")
    result = run("compare", float_model, *options, code=0).json
    plain = run("compare", float_model, *options[:4], "--json", code=0).json
    assert (result["inject"]["columns"], result["inject"]["factor"]) == ([8, 24], 32)
    assert result["inject"]["norms"] == 5
    assert [scheme["name"] for scheme in result["schemes"]] == ["float", "llmint8-0"]
    assert result["calibration"] is None
    assert result["schemes"][0]["perplexity"] == plain["schemes"][0]["perplexity"]
    (expected,) = library(float_model, ["llmint8-0"], 60, 256, (2, 32))
    assert result["schemes"][1]["kl"] == pytest.approx(expected.score.kl, rel=1e-3)
    assert result["schemes"][1]["kl"] > plain["schemes"][1]["kl"]


def test_the_table_shows_what_json_holds(run, float_model):
    options = ("--tokens", 40, "--inject", "24x64")
    rows = run("compare", float_model, *options, "--json", code=0).json["schemes"]
    shown = run("compare", float_model, *options, code=0).stdout
    for row in rows:
        line = next(line for line in shown.splitlines() if line.strip().startswith(row["title"] + " "))
        assert f"{row['perplexity']:,.3f}" in line
        assert f"{row['kl']:.5f}" in line
        assert f"{row['top1_agreement']:.2%}" in line
    assert re.search(r"Injected: columns 0, 1, .*, 30 of 5 norms, times 64", " ".join(shown.split()))
    crowded = [row for row in rows if row["crowded_layers"]]
    assert crowded
    for row in crowded:
        assert re.search(
            re.escape(row["title"]) + r": most columns hold outliers in \S+ \(\d+%\)", " ".join(shown.split())
        )


def test_every_layer_on_demand(run, float_model):
    options = ("--tokens", 40, "--schemes", "llmint8-auto,llmint8-0,weight-only")
    (row,) = [
        row
        for row in run("compare", float_model, *options, "--json", code=0).json["schemes"]
        if row["name"] == "llmint8-auto"
    ]
    shown = run("compare", float_model, *options, "--all", code=0).stdout
    assert "Every layer, llmint8, threshold auto" in shown
    assert shown.count("Every layer") == 1  # threshold 0 keeps nothing, weight-only everything
    for name, shares in row["layers"].items():
        (line,) = [line.split() for line in shown.splitlines() if line.split()[:1] == [name]]
        cells = " ".join(line[1:]).replace("none", "0.00%").replace("all", "100.00%").split()
        assert cells == [f"{shares['kept_values']:.2%}", f"{shares['kept_columns']:.2%}"]
    assert "Every layer" not in run("compare", float_model, *options, code=0).stdout


def test_the_picture(run, float_model, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    file = tmp_path / "schemes.png"
    run("compare", float_model, "--tokens", 30, "--plot", file, code=0)
    pixels = image.imread(io.BytesIO(file.read_bytes()), format="png")
    assert pixels.shape[1] == 1200
    assert pixels.shape[0] > 500
    red = (pixels[..., 0] > 0.7) & (pixels[..., 1] < 0.25) & (pixels[..., 2] < 0.25)
    assert red.sum() > 2000  # the bars of llmint8


def test_another_text_and_another_calibration(run, float_model, tmp_path):
    file, other = tmp_path / "text.txt", tmp_path / "other.txt"
    file.write_text("Äpfel und Birnen. " * 9, encoding="utf-8")
    other.write_text("Quitten. " * 9, encoding="utf-8")
    options = ("compare", float_model, "--text", file, "--tokens", 100, "--schemes", "smoothquant", "--json")
    result = run(*options, "--calibration", other, code=0).json
    assert (result["text"], result["calibration"], result["tokens"]) == (str(file), str(other), 100)
    assert result["schemes"][0]["kl"] != run(*options, code=0).json["schemes"][0]["kl"]


def test_fused_experts_are_compared_too(run, tmp_path):
    tiny_mixture().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    names = "smoothquant,llmint8-auto,llmint8-auto-int16"
    result = run("compare", tmp_path / "model", "--tokens", 30, "--schemes", names, "--json", code=0).json
    assert result["layers"] == 12
    layers = result["schemes"][1]["layers"]
    assert {name for name in layers if "experts" in name} == {
        f"model.layers.{i}.mlp.experts.{key}" for i in range(2) for key in ("gate_up_proj", "down_proj")
    }


def test_errors_are_one_line(run, float_model, int8_model, tmp_path):
    assert "is int8 already; compare takes the float model" in run("compare", int8_model).error
    assert "must be a power of two" in run("compare", float_model, "--inject", "2x3").error
    assert "33 columns cannot be injected into 32" in run("compare", float_model, "--inject", "33x2").error
    assert "must end in .png" in run("compare", float_model, "--plot", tmp_path / "a.svg").error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--schemes", "int4", "'int4' is no scheme"), ("--inject", "6", "give columns by factor, such as 6x64")],
)
def test_wrong_usage_is_named(run, float_model, option, value, message):
    outcome = run("compare", float_model, option, value, code=2)
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", outcome.stderr).split())
