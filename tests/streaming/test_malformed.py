"""Files that lie: one error each, that names the thing; nothing is executed, nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmint8 import CheckpointError, LLMInt8Error, QuantizationError, convert_checkpoint
from llmint8.checkpoint import check_loaded_files, inspect_checkpoint
from llmint8.streaming import source as source_module

from .conftest import contents

LAYER = "model.layers.1.mlp.up_proj"
INDEX = "model.safetensors.index.json"


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.fixture(scope="module")
def int8_folder(float_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "model"
    convert_checkpoint(float_folder, folder)
    return folder


@pytest.fixture(params=["float", "int8"])
def folder(request, tmp_path, float_folder, int8_folder):
    """A copy to spoil; `refused` reads it in the ways that its kind is read."""
    source = float_folder if request.param == "float" else int8_folder
    return shutil.copytree(source, tmp_path / request.param)


def refused(folder: Path) -> str:
    """The one error of all readers; nothing has been written beside the folder."""
    before = {path.name for path in folder.parent.iterdir()}
    arguments = (folder.with_name("out"),) if folder.name == "float" else ()
    read = convert_checkpoint if arguments else AutoModelForCausalLM.from_pretrained
    with pytest.raises(LLMInt8Error) as error:
        read(folder, *arguments)
    with pytest.raises(CheckpointError):
        inspect_checkpoint(folder)
    assert {path.name for path in folder.parent.iterdir()} == before
    return str(error.value)


def spoil_header(folder: Path, change) -> None:
    """Rewrite the header of the file; the bytes of the tensors stay."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def index_of(folder: Path, place: str) -> None:
    """Give the folder an index that places all tensors in one file."""
    keys = load_file(folder / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, place)}))


def test_a_truncated_file(folder):
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert f"{file} is torn or not a safetensors file" in refused(folder)


def test_a_pickle_under_the_name_of_safetensors(folder, tmp_path):
    torch.save({"a": Trap(tmp_path / "sprung")}, folder / "model.safetensors")
    assert "is torn or not a safetensors file" in refused(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert "is torn or not a safetensors file" in refused(folder)
    assert not (tmp_path / "sprung").exists()


def test_pickled_weights_are_not_converted(float_folder, tmp_path):
    folder = shutil.copytree(float_folder, tmp_path / "float")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    assert "holds pickled weights (pytorch_model.bin)" in refused(folder)
    assert not (tmp_path / "sprung").exists()


def test_offsets_that_overlap(folder):
    def overlap(header):
        header[f"{LAYER}.weight"]["data_offsets"] = header["model.layers.0.mlp.up_proj.weight"][
            "data_offsets"
        ]

    spoil_header(folder, overlap)
    assert "is torn or not a safetensors file" in refused(folder)


def test_a_shape_that_does_not_fill_its_bytes(folder):
    spoil_header(folder, lambda header: header[f"{LAYER}.weight"]["shape"].append(2))
    assert "is torn or not a safetensors file" in refused(folder)


@pytest.mark.parametrize("place", ["../evil.safetensors", "ABSOLUTE"])
def test_an_index_that_leaves_the_folder(folder, place):
    outside = folder.parent / "evil.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    keys = load_file(outside)
    place = str(outside) if place == "ABSOLUTE" else place
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, place)}))
    assert "the index is not to be trusted" in refused(folder)


def test_a_link_out_of_the_folder(folder):
    outside = folder.parent / "elsewhere.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside)
    assert "is a link out of the folder" in refused(folder)


def test_the_links_of_a_hub_cache_are_inside(float_folder, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b"
    shutil.copytree(float_folder, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    convert_checkpoint(snapshot, tmp_path / "out")
    check_loaded_files([snapshot / "model.safetensors"], "someone/model")


def test_a_tokenizer_that_is_a_link_out_of_the_folder(float_folder, tmp_path):
    folder = shutil.copytree(float_folder, tmp_path / "float")
    (tmp_path / "secret.json").write_text("{}")
    (folder / "added.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match=r"added\.json is a link out of the folder"):
        convert_checkpoint(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"float", "secret.json"}


def test_an_index_that_names_a_tensor_too_many(float_folder, tmp_path):
    folder = shutil.copytree(float_folder, tmp_path / "float")
    index_of(folder, "model.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.phantom.weight"] = "model.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "places model.phantom.weight in model.safetensors, which does not hold it" in refused(folder)


def test_a_tensor_in_two_files(float_folder, tmp_path):
    folder = shutil.copytree(float_folder, tmp_path / "float")
    shutil.copy(folder / "model.safetensors", folder / "twin.safetensors")
    index_of(folder, "model.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "twin.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "which another file holds too" in refused(folder)


@pytest.fixture
def retensored(float_folder, int8_folder, tmp_path):
    """Copy a folder and change its tensors in a function that gets them by name."""

    def change(kind, function):
        source = float_folder if kind == "float" else int8_folder
        folder = shutil.copytree(source, tmp_path / kind)
        tensors = load_file(folder / "model.safetensors")
        function(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


def test_scales_that_are_missing(retensored):
    assert f"{LAYER}.SCB is missing" in refused(retensored("int8", lambda t: t.pop(f"{LAYER}.SCB")))


def test_codes_that_are_missing(retensored):
    assert f"{LAYER}.weight is missing" in refused(retensored("int8", lambda t: t.pop(f"{LAYER}.weight")))


def test_a_scale_that_is_no_number(retensored):
    folder = retensored("int8", lambda t: t[f"{LAYER}.SCB"][3].fill_(torch.nan))
    assert f"{LAYER}: SCB holds a negative or non-finite value" in refused(folder)


def test_scales_of_another_shape(retensored):
    folder = retensored("int8", lambda t: t.__setitem__(f"{LAYER}.SCB", torch.ones(7)))
    assert f"{LAYER}.SCB is F32 [7], but" in refused(folder)


def conversion_error(folder: Path, kind: type[LLMInt8Error]) -> str:
    with pytest.raises(kind) as error:
        convert_checkpoint(folder, folder.with_name("out"), max_shard_size="4KB")
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}
    return str(error.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_leaves_no_shard(retensored, value):
    folder = retensored("float", lambda t: t[f"{LAYER}.weight"][3].fill_(value))
    assert f"{LAYER}.weight holds a NaN or an infinity" in conversion_error(folder, QuantizationError)


def test_a_weight_of_another_shape(retensored):
    folder = retensored("float", lambda t: t.__setitem__(f"{LAYER}.weight", torch.ones(48, 31)))
    assert f"{LAYER}.weight is [48, 31] in the file, but config.json wants [48, 32]" in conversion_error(
        folder, CheckpointError
    )


def test_a_tensor_that_is_missing(retensored):
    folder = retensored("float", lambda t: t.pop("model.norm.weight"))
    assert "model.norm.weight is missing in the files" in conversion_error(folder, CheckpointError)


def test_a_tensor_that_is_no_part_of_the_model(retensored):
    folder = retensored("float", lambda t: t.__setitem__("model.extra.weight", torch.ones(3)))
    assert "model.extra.weight is not part of the model" in conversion_error(folder, CheckpointError)


def test_a_file_that_shrinks_while_it_is_read(float_folder, tmp_path):
    folder = shutil.copytree(float_folder, tmp_path / "float")
    source = source_module.Source(folder)
    os.truncate(folder / "model.safetensors", 3000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends within lm_head\.weight"):
        source.read("lm_head.weight")


def test_a_config_with_code_of_its_own_is_not_run(float_folder, tmp_path):
    folder = shutil.copytree(float_folder, tmp_path / "float")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    assert "cannot be loaded" in conversion_error(folder, CheckpointError)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        convert_checkpoint(tmp_path / "none", tmp_path / "out")
    assert contents(tmp_path) == {}
