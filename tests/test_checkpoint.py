"""Headers of checkpoints: what is read, and the one line for each way in which one can be broken."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmint8 import CheckpointError, Int8Config, quantize_model
from llmint8.checkpoint import TensorHeader, inspect_checkpoint, shard_files
from tiny import save_tiny_checkpoint, tiny_llama

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    model = tiny_llama()
    quantize_model(model, Int8Config("auto", ["down_proj"]))
    model.save_pretrained(folder)
    return folder


def test_a_converted_model(converted: Path) -> None:
    summary = inspect_checkpoint(converted)
    assert summary.quantization == Int8Config("auto", ("down_proj",)).to_dict()
    assert len(summary.int8_layers) == 12
    assert summary.int8_layers[LAYER] == TensorHeader("I8", (32, 32))
    tensors = load_file(converted / "model.safetensors")
    assert summary.tensors.keys() == tensors.keys()
    assert summary.nbytes == sum(t.nbytes for t in tensors.values())
    one_file = inspect_checkpoint(converted / "model.safetensors")
    assert one_file.tensors == summary.tensors
    assert one_file.quantization is None


def test_a_float_model_in_shards(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(shard_files(tmp_path)) > 1
    summary = inspect_checkpoint(tmp_path)
    assert (summary.quantization, summary.int8_layers) == (None, {})
    assert summary.nbytes == sum(p.nbytes for p in tiny_llama().parameters())


def test_every_dtype_has_its_size(tmp_path: Path) -> None:
    dtypes = (torch.bool, torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32)
    dtypes += (torch.int32, torch.float64, torch.int64)
    tensors = {f"t{i}": torch.zeros(3, 5, dtype=dtype) for i, dtype in enumerate(dtypes)}
    save_file(tensors, tmp_path / "x.safetensors")
    headers = inspect_checkpoint(tmp_path / "x.safetensors").tensors
    assert {n: h.nbytes for n, h in headers.items()} == {n: t.nbytes for n, t in tensors.items()}


def without(name: str):
    return lambda tensors: tensors.pop(name)


def instead(name: str, change):
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


BROKEN = {
    "no scales": (without(LAYER + ".SCB"), f"{LAYER}.SCB is missing"),
    "no codes": (without(LAYER + ".weight"), f"{LAYER}.weight is missing"),
    "too few scales": (instead(LAYER + ".SCB", lambda t: t[:5]), "SCB is F32 [5], but"),
    "two-dimensional scales": (instead(LAYER + ".SCB", lambda t: t[None]), "SCB is F32 [1, 32], but"),
    "half scales": (instead(LAYER + ".SCB", lambda t: t.half()), "SCB is F16 [32], but"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_layers_that_cannot_be_right(converted: Path, tmp_path: Path, change, message: str) -> None:
    tensors = load_file(converted / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        inspect_checkpoint(tmp_path)
    assert message in str(error.value)
    assert str(error.value).endswith("convert the model again")
    assert "\n" not in str(error.value)


def index(folder: Path, content: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def torn(folder: Path) -> None:
    save_tiny_checkpoint(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


FOLDERS = {
    "empty": (lambda folder: None, "holds no .safetensors file"),
    "torn": (torn, "is torn or not a safetensors file"),
    "text": (
        lambda folder: (folder / "a.safetensors").write_text("hello"),
        "is torn or not a safetensors file",
    ),
    "lost shard": (
        lambda folder: index(folder, {"weight_map": {"w": "gone.safetensors"}}),
        "gone.safetensors is missing, though the checkpoint names it",
    ),
    "shard elsewhere": (
        lambda folder: index(folder, {"weight_map": {"w": "../other/x.safetensors"}}),
        "leaves the folder",
    ),
    "no weight_map": (lambda folder: index(folder, {}), "holds no weight_map"),
    "odd weight_map": (lambda folder: index(folder, {"weight_map": ["x"]}), "holds no weight_map"),
    "odd shard": (lambda folder: index(folder, {"weight_map": {"w": 5}}), "holds no weight_map"),
    "index is a list": (lambda folder: index(folder, []), "does not hold a JSON object"),
    "index is no JSON": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        "cannot be read as JSON",
    ),
}


@pytest.mark.parametrize(("build", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_cannot_be_read(tmp_path: Path, build, message: str) -> None:
    build(tmp_path)
    with pytest.raises(CheckpointError) as error:
        inspect_checkpoint(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; give a checkpoint folder"):
        inspect_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"quantization_config": 5}', "\xff"])
def test_config_json_that_cannot_be_read(converted: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors").write_bytes((converted / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="fetch it again"):
        inspect_checkpoint(tmp_path)
