"""`llmint8 finetune`: adapters that another program loads, or nothing at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FEW = ("--steps", 2, "--batch", 1, "--length", 16, "--rank", 2)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("An adapter learns this sentence by heart, and then it says it again. " * 4)
    return file


def test_the_adapter_loads_in_peft_and_changes_the_model(run, float_model, text, tmp_path):
    out, plot = tmp_path / "adapter", tmp_path / "loss.png"
    given = (*FEW, "--learning-rate", 0.05, "--plot", plot)
    shown = run("finetune", float_model, out, "--text", text, *given, code=0).stdout
    assert "PeftModel.from_pretrained" in shown
    assert str(out) in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in out.iterdir()}
    model, ids = AutoModelForCausalLM.from_pretrained(float_model), torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        after = PeftModel.from_pretrained(model, out)(ids).logits
    assert not torch.equal(before, after)


@pytest.mark.parametrize("base", ["int8", "nf4", "fp4", "float"])
def test_bases_learn(run, float_model, text, tmp_path, base):
    given = ("--text", text, "--base", base, "--steps", 12, "--batch", 4, "--length", 16)
    learning = ("--learning-rate", 0.01, "--json")
    report = run("finetune", float_model, tmp_path / "adapter", *given, *learning, code=0).json
    assert report["base"] == base
    assert len(report["losses"]) == 12
    assert report["held_back"]["after"] < report["held_back"]["before"] - 0.1
    assert report["pieces"] == [16, 1]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == report["trained_parameters"]
    assert "lm_head" not in " ".join(tensors)


def test_options_reach_the_adapter_and_a_seed_repeats_it(run, int8_model, text, tmp_path):
    given = ("--text", text, *FEW, "--target", "q_proj", "--target", "down_proj", "--seed")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run("finetune", int8_model, tmp_path / name, *given, seed, code=0)
    first, again, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in "abc")
    assert {key.split(".lora_")[0].rsplit(".", 1)[1] for key in first} == {"q_proj", "down_proj"}
    assert {t.shape[0] for key, t in first.items() if "lora_A" in key} == {2}
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_what_exists_is_left_alone_and_nothing_is_loaded(run, float_model, text, tmp_path, monkeypatch):
    monkeypatch.setattr("llmint8.cli.finetune.find_model", lambda _: pytest.fail("looked for the model"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes").write_text("mine")
    error = run("finetune", float_model, tmp_path / "adapter", "--text", text).error
    assert "exists already; choose another folder" in error
    assert (tmp_path / "adapter" / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--length", 400), "fewer than two pieces of 400.*give more text, or shorter pieces"),
        (("--target", "no_proj"), "no adapter fits.*no_proj"),
        (
            ("--learning-rate", 1e30, "--length", 16, "--steps", 8),
            "step . is not finite; train with a smaller",
        ),
        (("--plot", "picture.jpg"), "must end in .png"),
    ],
)
def test_failures_write_nothing(run, float_model, text, tmp_path, given, message):
    before = set(tmp_path.iterdir())
    error = run("finetune", float_model, tmp_path / "adapter", "--text", text, "--length", 16, *given).error
    assert re.search(message, error), error
    assert set(tmp_path.iterdir()) == before


def test_an_int8_model_takes_no_other_base(run, int8_model, text, tmp_path):
    error = run(
        "finetune", int8_model, tmp_path / "adapter", "--text", text, "--length", 16, "--base", "nf4"
    ).error
    assert "int8 already; --base nf4 takes the float model" in error
