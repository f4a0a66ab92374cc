"""`llmint8 quantize`: what it writes, and that it writes all or nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import llmint8
from llmint8 import CheckpointError, Int8Config, Int8Linear
from llmint8.streaming.jobs import Copy


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_checkpoint_holds_the_bits_of_a_conversion_in_memory(float_model, int8_model):
    converted = AutoModelForCausalLM.from_pretrained(float_model)
    llmint8.quantize_model(converted)
    written, expected = load_file(int8_model / "model.safetensors"), converted.state_dict()
    assert written.keys() == expected.keys()
    assert [name for name in written if not torch.equal(written[name], expected[name])] == []


def test_tokenizer_and_generation_settings_are_copied_byte_for_byte(float_model, int8_model):
    for name in names(float_model) - {"config.json", "model.safetensors"}:
        assert (int8_model / name).read_bytes() == (float_model / name).read_bytes(), name
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names(int8_model)


def test_options_reach_the_checkpoint(run, float_model, tmp_path):
    options = ("--threshold", "auto", "--skip", "down_proj", "--skip", "layers.0", "--dtype", "bfloat16")
    report = run("quantize", float_model, tmp_path / "out", *options, "--json", code=0).json
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    prefix = "model.layers.1."
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    assert set(layers) == {prefix + part for part in (*parts, "mlp.gate_proj", "mlp.up_proj")}
    assert {layer.threshold for layer in layers.values()} == {"auto"}
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert {row["name"] for row in report["converted"]} == set(layers)
    assert report["config"]["skip_modules"] == ["down_proj", "layers.0"]
    assert report["out"] == str(tmp_path / "out")
    assert report["bytes_after"] < report["bytes_before"]


def test_head_and_embeddings_reach_the_checkpoint(run, float_model, tmp_path):
    options = ("--head", "--embeddings", "--json")
    config = run("quantize", float_model, tmp_path / "out", *options, code=0).json["config"]
    assert (config["quantize_head"], config["quantize_embeddings"]) == (True, True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(model.lm_head, Int8Linear)
    assert isinstance(model.model.embed_tokens, llmint8.Int8Embedding)


def test_format_and_shard_size_reach_the_checkpoint(run, float_model, tmp_path):
    options = ("--format", "compressed-tensors", "--max-shard-size", "20KB")
    report = run("quantize", float_model, tmp_path / "out", *options, "--json", code=0).json
    assert report["format"] == "compressed-tensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in (tmp_path / "out").glob("*.safetensors")}
    assert "model.layers.0.mlp.up_proj.weight_scale" in index["weight_map"]


@pytest.mark.parametrize("option", [("--max-shard-size", "5 apples"), ("--format", "gguf")])
def test_a_bad_option_writes_nothing(run, float_model, tmp_path, option):
    outcome = run("quantize", float_model, tmp_path / "out", *option)
    assert option[1] in outcome.stderr
    assert names(tmp_path) == set()


def test_the_report_is_a_table_with_reasons(run, float_model, tmp_path):
    shown = run("quantize", float_model, tmp_path / "out", code=0).stdout
    assert "output head" in shown
    assert "embedding" in shown
    assert f"Written to {tmp_path / 'out'}" in shown


def test_an_int8_model_is_refused(run, int8_model, tmp_path):
    assert (
        "is int8 already; quantize takes the float model" in run("quantize", int8_model, tmp_path / "o").error
    )
    assert names(tmp_path) == set()


def test_an_existing_folder_is_left_alone_without_force(run, float_model, int8_model, edited):
    out = edited(int8_model)
    before = (out / "model.safetensors").read_bytes()
    assert "exists already" in run("quantize", float_model, out, "--skip", "mlp").error
    assert (out / "model.safetensors").read_bytes() == before


def test_force_replaces_a_checkpoint_as_a_whole(run, float_model, int8_model, edited):
    out = edited(int8_model)
    (out / "stale.bin").write_text("of the model before")
    run("quantize", float_model, out, "--force", "--threshold", "0", code=0)
    assert names(out) == names(int8_model)
    assert names(out.parent) == {out.name}
    assert AutoModelForCausalLM.from_pretrained(out).config.quantization_config.threshold == 0


def test_force_replaces_no_other_folder(run, float_model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    error = run("quantize", float_model, tmp_path / "photos", "--force").error
    assert "is no checkpoint folder" in error
    assert names(tmp_path / "photos") == {"cat.jpg"}


@pytest.mark.parametrize("levels", [0, 1])
def test_the_model_that_is_read_is_never_replaced(run, float_model, levels):
    out = (float_model, *float_model.parents)[levels]
    assert "holds the model that is read" in run("quantize", float_model, out, "--force").error
    assert "model.safetensors" in names(float_model)


def test_a_missing_parent_is_named(run, float_model, tmp_path):
    error = run("quantize", float_model, tmp_path / "no" / "out").error
    assert f"{tmp_path / 'no'} is no folder; create it first" in error


def test_a_skip_pattern_that_matches_nothing_is_named(run, float_model, tmp_path):
    assert (
        "'dwon_proj' matches no module"
        in run("quantize", float_model, tmp_path / "o", "--skip", "dwon_proj").error
    )
    assert names(tmp_path) == set()


def test_a_non_finite_weight_leaves_nothing(run, float_model, retensored):
    name = "model.layers.1.mlp.down_proj.weight"
    source = retensored(float_model, lambda t: t[name][0].fill_(torch.nan))
    error = run("quantize", source, source.parent / "out").error
    assert error.startswith(name)
    assert "holds a NaN" in error
    assert names(source.parent) == {source.name}


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (CheckpointError("a bad tensor\nsomewhere"), 1, "a bad tensor somewhere"),
        (KeyboardInterrupt(), 130, "interrupted; no result was left half written"),
    ],
)
def test_a_failure_while_writing_leaves_what_was_there(
    run, float_model, int8_model, edited, monkeypatch, failure, code, message
):
    def write_half(job, source, write):
        write(job.key, torch.zeros(3, dtype=job.output.dtype), 0)
        raise failure

    monkeypatch.setattr(Copy, "run", write_half)
    old = edited(int8_model)
    for out, options in ((old, ["--force"]), (old.parent / "new", [])):
        outcome = run("quantize", float_model, out, *options, code=code)
        assert outcome.stdout == ""
        assert outcome.stderr.splitlines()[-1].startswith("error: ")
        assert message in outcome.stderr.splitlines()[-1]
    assert names(old.parent) == {old.name}
    assert (old / "model.safetensors").read_bytes() == (int8_model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing(float_model, tmp_path, number, code):
    script = f"""
import os, signal, sys, torch
from llmint8.cli import main
from llmint8.streaming.jobs import Copy

def write_half(job, source, write):
    write(job.key, torch.zeros(3, dtype=job.output.dtype), 0)
    os.kill(os.getpid(), {int(number)})

Copy.run = write_half
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
sys.argv = ["llmint8", "quantize", {str(float_model)!r}, {str(tmp_path / "out")!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == set()


def test_the_written_configuration_reads_back(int8_model):
    assert AutoModelForCausalLM.from_pretrained(int8_model).config.quantization_config == Int8Config()
