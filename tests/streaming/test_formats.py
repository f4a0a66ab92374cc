"""The exported formats: keys, dtypes, values and configuration. They were loaded with the libraries that read
them; here their layout is held fast."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import tiny
from llmint8 import ConfigError, Int8Config, convert_checkpoint, reference


def settings(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def folders(float_folder, tmp_path_factory):
    base = tmp_path_factory.mktemp("formats")
    for name in ("llmint8", "bitsandbytes", "compressed-tensors"):
        convert_checkpoint(float_folder, base / name, format=name)
    return {path.name: path for path in base.iterdir()}


def test_bitsandbytes_has_the_same_file(folders):
    one, other = (folders[name] / "model.safetensors" for name in ("llmint8", "bitsandbytes"))
    assert one.read_bytes() == other.read_bytes()


def test_bitsandbytes_is_told_what_stayed_float(folders):
    assert settings(folders["bitsandbytes"]) == {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": ["lm_head"],
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }


def test_bitsandbytes_knows_no_automatic_threshold(float_folder, tmp_path):
    with pytest.raises(ConfigError, match='no threshold "auto"; give a number'):
        convert_checkpoint(float_folder, tmp_path / "out", Int8Config("auto"), format="bitsandbytes")
    assert list(tmp_path.iterdir()) == []


def test_bitsandbytes_keeps_float_what_transformers_keeps_in_float32(tmp_path):
    tiny.tiny_t5().save_pretrained(tmp_path / "t5")
    report = convert_checkpoint(tmp_path / "t5", tmp_path / "out", format="bitsandbytes")
    kept = {row.name: row.decision for row in report.skipped if row.name.endswith(".wo")}
    assert len(kept) == 4
    assert set(kept.values()) == {"readers of the format expect it as floats"}
    assert set(kept) < set(settings(tmp_path / "out")["llm_int8_skip_modules"])
    assert {tensors(tmp_path / "out")[f"{name}.weight"].dtype for name in kept} == {torch.float32}


def test_compressed_tensors_has_a_scale_per_row(folders):
    ours, theirs = tensors(folders["llmint8"]), tensors(folders["compressed-tensors"])
    layers = [key.removesuffix(".SCB") for key in ours if key.endswith(".SCB")]
    assert len(layers) == 14
    for layer in layers:
        scale, absmax = theirs.pop(f"{layer}.weight_scale"), ours.pop(f"{layer}.SCB")
        del ours[f"{layer}.weight_format"]
        assert scale.shape == (len(absmax), 1)
        assert torch.equal(scale[:, 0], absmax / torch.full_like(absmax, 127))
        codes = theirs[f"{layer}.weight"]
        assert torch.equal(codes * scale, reference.dequantize_weight(ours[f"{layer}.weight"], absmax))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_compressed_tensors_states_dynamic_activations(folders):
    stated = settings(folders["compressed-tensors"])
    assert stated["quant_method"] == "compressed-tensors"
    assert stated["format"] == "int-quantized"
    assert stated["quantization_status"] == "compressed"
    assert stated["ignore"] == ["lm_head"]
    scheme = stated["config_groups"]["group_0"]
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    assert scheme["targets"] == ["Linear"]
    assert scheme["weights"] == {**eight, "strategy": "channel", "dynamic": False}
    assert scheme["input_activations"] == {**eight, "strategy": "token", "dynamic": True}


def test_compressed_tensors_knows_no_conv1d(tmp_path):
    tiny.tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        ConfigError, match="c_attn is a Conv1D, which the format compressed-tensors does not know"
    ):
        convert_checkpoint(tmp_path / "gpt2", tmp_path / "out", format="compressed-tensors")
    assert {path.name for path in tmp_path.iterdir()} == {"gpt2"}


def test_experts_stay_float_for_bitsandbytes_and_are_unknown_to_compressed_tensors(tmp_path):
    tiny.tiny_mixture().save_pretrained(tmp_path / "float")
    convert_checkpoint(tmp_path / "float", tmp_path / "out", format="bitsandbytes")
    experts = [t for key, t in tensors(tmp_path / "out").items() if ".experts." in key]
    assert len(experts) == 2 * 4 * 3
    assert {t.dtype for t in experts} == {torch.float32}
    with pytest.raises(ConfigError, match=r"mlp\.experts is a layer of experts, which the format"):
        convert_checkpoint(tmp_path / "float", tmp_path / "no", format="compressed-tensors")


@pytest.mark.parametrize("name", ["bitsandbytes", "compressed-tensors"])
def test_the_other_formats_know_no_int8_embeddings(name, float_folder, tmp_path):
    with pytest.raises(ConfigError, match="knows no int8 embeddings; write the format llmint8"):
        convert_checkpoint(float_folder, tmp_path / "out", Int8Config(quantize_embeddings=True), format=name)
