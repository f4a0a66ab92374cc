"""What a command says of a folder that is no model: the thing, the remedy, nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

SCB = "model.layers.0.mlp.up_proj.SCB"
WEIGHT = "model.layers.0.mlp.up_proj.weight"


def error_of(run, folder):
    return run("generate", folder, "hello", "--max-new-tokens", 2).error


def test_a_missing_folder(run, tmp_path):
    error = error_of(run, tmp_path / "none")
    assert error.startswith(f"{tmp_path / 'none'} does not exist; give a local model folder")


def test_a_file_instead_of_a_folder(run, float_model):
    assert "is a file; give the folder" in error_of(run, float_model / "config.json")


def test_a_folder_without_config(run, tmp_path):
    assert "holds no config.json" in error_of(run, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_config_that_is_no_json_object(run, float_model, edited, content):
    folder = edited(float_model)
    (folder / "config.json").write_text(content)
    assert str(folder / "config.json") in error_of(run, folder)


def test_an_unknown_architecture(run, float_model, edited):
    error = error_of(run, edited(float_model, model_type="perceptron"))
    assert "`perceptron`" in error
    assert "check config.json" in error


def test_a_config_of_another_vocabulary(run, float_model, edited):
    error = error_of(run, edited(float_model, vocab_size=300))
    assert "[258, 32] in the file, but config.json wants [300, 32]; restore" in error


def test_a_config_of_another_width(run, float_model, edited):
    folder = edited(float_model, hidden_size=64)
    assert error_of(run, folder).startswith(f"{folder}: model.layers.0.")


def test_a_config_with_more_layers(run, float_model, edited):
    assert "model.layers.2." in error_of(run, edited(float_model, num_hidden_layers=3))


def test_a_config_with_fewer_layers_would_drop_weights(run, float_model, edited):
    error = error_of(run, edited(float_model, num_hidden_layers=1))
    assert "model.layers.1.input_layernorm.weight and 8 more are not part of the model" in error


def test_a_norm_missing_in_the_files(run, float_model, retensored):
    error = error_of(run, retensored(float_model, lambda t: t.pop("model.norm.weight")))
    assert "model.norm.weight is missing in the files" in error


def test_torn_weights(run, float_model, edited):
    folder = edited(float_model)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:3000])
    assert f"{file} is torn" in error_of(run, folder)


def test_a_missing_shard(run, float_model, edited):
    folder = edited(float_model)
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in error_of(run, folder)


def test_a_non_finite_weight_is_named(run, float_model, retensored):
    folder = retensored(float_model, lambda t: t[WEIGHT][3].fill_(torch.inf))
    assert error_of(run, folder).startswith(f"{folder}: {WEIGHT} holds a NaN or an infinity")


def test_scales_that_are_missing(run, int8_model, retensored):
    assert f"{SCB} is missing" in error_of(run, retensored(int8_model, lambda t: t.pop(SCB)))


def test_scales_that_do_not_fit(run, int8_model, retensored):
    folder = retensored(int8_model, lambda t: t.__setitem__(SCB, torch.ones(7)))
    assert f"{SCB} is F32 [7], but" in error_of(run, folder)


def test_scales_that_are_not_finite(run, int8_model, retensored):
    folder = retensored(int8_model, lambda t: t[SCB].fill_(torch.nan))
    assert "model.layers.0.mlp.up_proj: SCB holds a negative or non-finite value" in error_of(run, folder)


def test_int8_weights_that_the_config_does_not_declare(run, int8_model, edited):
    error = error_of(run, edited(int8_model, quantization_config=None))
    assert "holds int8 weights, but its config.json has no quantization_config" in error


def test_a_config_that_promises_int8(run, float_model, edited):
    error = error_of(run, edited(float_model, quantization_config={"quant_method": "llmint8"}))
    assert "holds no int8 weight" in error


def test_a_bad_threshold_in_the_config(run, int8_model, edited):
    settings = {"quant_method": "llmint8", "threshold": -3}
    assert "threshold must be finite and >= 0" in error_of(
        run, edited(int8_model, quantization_config=settings)
    )


def test_another_quantised_format(run, float_model, edited):
    error = error_of(run, edited(float_model, quantization_config={"quant_method": "gptq", "bits": 4}))
    assert "is quantised already, as 'gptq'; give the float model" in error


def test_a_folder_without_tokenizer(run, float_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(float_model, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    assert "holds no tokenizer that can be loaded" in error_of(run, folder)


def test_a_forced_instruction_set_that_does_not_exist(run, int8_model, monkeypatch):
    from llmint8 import backends

    backends.native.engine.cache_clear()
    monkeypatch.setenv("LLMINT8_ISA", "mmx")
    try:
        assert "LLMINT8_ISA=mmx" in error_of(run, int8_model)
    finally:
        backends.native.engine.cache_clear()
