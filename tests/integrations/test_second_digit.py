"""16-bit outlier weights through transformers and accelerate: loading, offloading, copies, refusals."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from accelerate import (
    disk_offload,
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import llmint8
from integrations.adapters import logits
from llmint8 import Int8Config, Int8Linear
from llmint8.errors import CheckpointError, ConfigError, QuantizationError
from llmint8.integrations.accelerate import empty_int8_model
from tiny import save_tiny_checkpoint

INT16 = Int8Config("auto", outlier_weights="int16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`float` and `int8` of a Llama wide enough for 2 % of its columns to be some."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_checkpoint(folder / "float", hidden_size=64, intermediate_size=200)
    llmint8.convert_checkpoint(folder / "float", folder / "int8", INT16)
    return folder


@pytest.fixture
def model(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder / "int8")
    assert sum(key.endswith("weight_low") for key in model.state_dict()) > 1
    return model


def same_state(got: nn.Module, want: nn.Module) -> bool:
    tensors, wanted = got.state_dict(), want.state_dict()
    return tensors.keys() == wanted.keys() and all(torch.equal(tensors[k], t) for k, t in wanted.items())


def empty(folder: Path) -> nn.Module:
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return empty_int8_model(model, folder).eval()


def test_on_one_device_a_map_changes_nothing(folder: Path, model: nn.Module) -> None:
    for device_map in ({"": "cpu"}, "auto"):
        loaded = AutoModelForCausalLM.from_pretrained(
            folder / "float", device_map=device_map, quantization_config=INT16
        )
        assert same_state(loaded, model)


def test_a_missing_weight_is_not_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "float").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{lost} is missing in the checkpoint or does not fit"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=INT16)


def test_a_missing_tokenizer_is_named_before_weights_are_read(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / "float" / name).read_bytes())
    torn = tmp_path / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4])
    with pytest.raises(ConfigError, match=r"holds no tokenizer .* put its files there, or give calibration"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=INT16)


def test_a_spread_model_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "float")
    disk_offload(model, str(tmp_path), torch.device("cpu"))
    with pytest.raises(QuantizationError, match=r"carries hooks"):
        llmint8.quantize_model(model, INT16)
    devices = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}
    devices |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    with pytest.raises(QuantizationError, match=r"llmint8 quantize MODEL OUT"):
        AutoModelForCausalLM.from_pretrained(folder / "float", device_map=devices, quantization_config=INT16)


def test_a_saved_model_is_offloaded_by_transformers(folder: Path, model: nn.Module, tmp_path: Path) -> None:
    devices = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}
    devices |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    loaded = AutoModelForCausalLM.from_pretrained(
        folder / "int8", device_map=devices, offload_folder=tmp_path
    )
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("offload_buffers", [False, True])
@pytest.mark.parametrize("blocks", ["cpu", "disk"])
def test_accelerate_fills_an_empty_model(
    folder: Path, model: nn.Module, tmp_path: Path, blocks: str, offload_buffers: bool
) -> None:
    skeleton = empty(folder / "int8")
    names = [name for name, module in skeleton.named_modules() if not list(module.children())]
    loaded = load_checkpoint_and_dispatch(
        skeleton,
        folder / "int8",
        device_map={name: blocks if ".layers." in name else "cpu" for name in names},
        offload_folder=tmp_path,
        offload_buffers=offload_buffers,
    )
    for _ in range(2):
        assert torch.equal(logits(loaded), logits(model))


def test_accelerate_gives_a_layer_the_columns_of_the_checkpoint(folder: Path, model: nn.Module) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder / "float", quantization_config=Int8Config("auto"))
    plain.save_pretrained(folder / "plain")
    want = copy.deepcopy(plain)
    load_checkpoint_in_model(plain, folder / "int8", device_map={"": "cpu"})
    assert same_state(plain, model)
    load_checkpoint_in_model(plain, folder / "plain", device_map={"": "cpu"})
    assert same_state(plain, want)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_of_a_model(model: nn.Module, way: str) -> None:
    original = model if way == "deepcopy" else model.model
    copied = copy.deepcopy(original) if way == "deepcopy" else pickle.loads(pickle.dumps(original))
    assert same_state(copied, original)


@pytest.mark.parametrize("cast", ["half", "float", "bfloat16"])
def test_a_cast_leaves_both_digits(model: nn.Module, cast: str) -> None:
    before = {key: t.clone() for key, t in model.state_dict().items() if not t.is_floating_point()}
    after = getattr(model, cast)().state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert logits(model).isfinite().all()


def test_back_to_floats_with_both_digits(model: nn.Module) -> None:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    want = {name: layer.dequantize() for name, layer in layers.items()}
    assert any(layer.outlier_cols is not None for layer in layers.values())
    floats = llmint8.dequantize_model(model)
    assert not [name for name, weight in want.items() if not floats.get_submodule(name).weight.equal(weight)]
    assert not [key for key in floats.state_dict() if key.endswith(("outlier_cols", "weight_low", "SCB"))]


def test_a_new_threshold_keeps_the_columns(model: nn.Module, tmp_path: Path) -> None:
    llmint8.set_threshold(model, 6.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.quantization_config == Int8Config(6.0, outlier_weights="int16")
    assert same_state(loaded, model)
    assert torch.equal(logits(loaded), logits(model))


def test_whole_models_compile_in_one_graph_and_are_exported(model: nn.Module) -> None:
    ids = torch.arange(12)[None]
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(ids, use_cache=False).logits, want)
        layer = next(m for m in model.modules() if isinstance(m, Int8Linear) and m.outlier_cols is not None)
        x = torch.randn(3, layer.in_features)
        exported = torch.export.export(layer, (x,))
        assert torch.equal(exported.module()(x), layer(x))
    assert {"outlier_cols", "weight_low"} <= exported.state_dict.keys()
