"""A conversion on disk gives what quantising while loading gives, tensor for tensor."""

from __future__ import annotations

import json
from collections import namedtuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import llmint8
import tiny
from llmint8 import CheckpointError, ConfigError, Int8Config, QuantizationError, convert_checkpoint
from llmint8.streaming import source as source_module
from llmint8.streaming import target
from zoo import ZOO

from .conftest import contents

MODELS = {
    "llama": (tiny.tiny_llama, AutoModelForCausalLM),
    "gpt2": (tiny.tiny_gpt2, AutoModelForCausalLM),
    "opt": (tiny.tiny_opt, AutoModelForCausalLM),
    "bert": (tiny.tiny_classifier, transformers.AutoModelForSequenceClassification),
    "t5": (tiny.tiny_t5, transformers.AutoModelForSeq2SeqLM),
    "mixtral": (tiny.tiny_mixture, AutoModelForCausalLM),
}


def different(one, other):
    """Names of the tensors that are not the same, in bits and dtype."""
    assert one.keys() == other.keys()
    return [k for k in one if one[k].dtype != other[k].dtype or not torch.equal(one[k], other[k])]


def loaded(kind, folder, **settings):
    model, info = kind.from_pretrained(folder, output_loading_info=True, **settings)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.state_dict()


@pytest.mark.parametrize("dtype", ["auto", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_it_loads_as_quantising_while_loading_does(name, dtype, tmp_path):
    build, kind = MODELS[name]
    build().save_pretrained(tmp_path / "float")
    convert_checkpoint(tmp_path / "float", tmp_path / "int8", dtype=dtype)
    expected = loaded(kind, tmp_path / "float", quantization_config=Int8Config(), dtype=dtype)
    assert different(loaded(kind, tmp_path / "int8"), expected) == []


def test_experts_become_int8_one_by_one(tmp_path):
    tiny.tiny_mixture().save_pretrained(tmp_path / "float")
    convert_checkpoint(tmp_path / "float", tmp_path / "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    experts = [key for key in stored if ".experts." in key]
    assert {key.rpartition(".")[2] for key in experts} == {"weight", "SCB"}
    assert len(experts) == 2 * 4 * 3 * 2
    assert {stored[key].dtype for key in experts} == {torch.int8, torch.float32}


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj_SCB"),
        ("granite_moe", "model.layers.0.block_sparse_moe.output_linear.SCB"),  # stored like a linear layer
    ],
)
def test_experts_that_are_stored_together(name, scales, tmp_path):
    ZOO[name].build().save_pretrained(tmp_path / "float")
    convert_checkpoint(tmp_path / "float", tmp_path / "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert stored[scales].shape == (ZOO[name].build().config.num_local_experts, 32)
    expected = loaded(AutoModelForCausalLM, tmp_path / "float", quantization_config=Int8Config())
    assert different(loaded(AutoModelForCausalLM, tmp_path / "int8"), expected) == []


@pytest.mark.parametrize("tied", [False, True])
def test_head_and_embeddings(tied, tmp_path):
    config = Int8Config(quantize_head=True, quantize_embeddings=True)
    tiny.tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "float")
    report = convert_checkpoint(tmp_path / "float", tmp_path / "int8", config)
    assert report.skipped == ()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    assert report == llmint8.quantize_model(model, config)
    assert different(loaded(AutoModelForCausalLM, tmp_path / "int8"), model.state_dict()) == []


def test_blocks_of_a_few_rows_change_nothing(float_folder, tmp_path, monkeypatch):
    convert_checkpoint(float_folder, tmp_path / "whole", dtype="bfloat16")
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 700)
    convert_checkpoint(float_folder, tmp_path / "pieces", dtype="bfloat16")
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")


def test_the_report_is_that_of_a_conversion_in_memory(float_folder, tmp_path):
    config = Int8Config(skip_modules=("down_proj",))
    model = AutoModelForCausalLM.from_pretrained(float_folder)
    assert convert_checkpoint(float_folder, tmp_path / "out", config) == llmint8.quantize_model(model, config)


def test_the_keys_of_a_base_model_stay_as_they_are(tmp_path):
    model = tiny.tiny_gpt2()
    model.save_pretrained(tmp_path / "float")
    file = tmp_path / "float" / "model.safetensors"
    bare = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    convert_checkpoint(tmp_path / "float", tmp_path / "int8")
    assert "h.0.attn.c_attn.SCB" in load_file(tmp_path / "int8" / "model.safetensors")
    expected = loaded(AutoModelForCausalLM, tmp_path / "float", quantization_config=Int8Config())
    assert different(loaded(AutoModelForCausalLM, tmp_path / "int8"), expected) == []


def test_shards_keep_to_their_size_and_index(float_folder, tmp_path):
    convert_checkpoint(float_folder, tmp_path / "one")
    convert_checkpoint(float_folder, tmp_path / "many", max_shard_size="20KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    held = {}
    for file in files:
        tensors = load_file(file)
        assert {index["weight_map"][key] for key in tensors} == {file.name}
        assert sum(t.nbytes for t in tensors.values()) <= 20_000 or len(tensors) == 1
        held |= tensors
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values())
    assert different(held, load_file(tmp_path / "one" / "model.safetensors")) == []


def test_a_sharded_source_converts_to_the_same(float_folder, tmp_path):
    tiny.tiny_llama().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    convert_checkpoint(tmp_path / "shards", tmp_path / "from-shards")
    convert_checkpoint(float_folder, tmp_path / "from-one")
    one, other = (load_file(tmp_path / f / "model.safetensors") for f in ("from-shards", "from-one"))
    assert different(one, other) == []


def test_progress_counts_tensors(float_folder, tmp_path):
    steps = []
    convert_checkpoint(float_folder, tmp_path / "out", progress=lambda *step: steps.append(step))
    total = len(load_file(float_folder / "model.safetensors"))
    assert steps == [(done, total) for done in range(1, total + 1)]


def test_a_full_disk_is_noticed_first(float_folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(target.shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 1000))
    with pytest.raises(
        CheckpointError, match=r"1000 B free \(1000 bytes\), but 1\.1 MiB are needed \(\d+ bytes\)"
    ):
        convert_checkpoint(float_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "count"), [(7, 7), ("500MB", 500_000_000), ("1.5 kb", 1500), ("2GiB", 2 << 30), ("10", 10)]
)
def test_sizes(size, count):
    assert target.parse_size(size) == count


@pytest.mark.parametrize(
    "setting",
    [{"max_shard_size": s} for s in ("", "5 apples", "-5GB", "0", 0, "GB", "1e9")]
    + [{"dtype": "int8"}, {"dtype": "float64"}, {"format": "gguf"}],
)
def test_a_bad_setting_is_named(float_folder, tmp_path, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        convert_checkpoint(float_folder, tmp_path / "out", **setting)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_int8_is_refused(float_folder, tmp_path):
    convert_checkpoint(float_folder, tmp_path / "int8")
    with pytest.raises(QuantizationError, match="quantised already, as 'llmint8'"):
        convert_checkpoint(tmp_path / "int8", tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == {"int8"}


def test_nothing_to_convert(float_folder, tmp_path):
    with pytest.raises(QuantizationError, match="nothing to convert"):
        convert_checkpoint(float_folder, tmp_path / "out", Int8Config(skip_modules=("model",)))
    assert list(tmp_path.iterdir()) == []
