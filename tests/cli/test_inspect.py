"""`llmint8 inspect` shows what the headers say."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from llmint8 import Int8Config, convert_checkpoint
from tiny import save_tiny_checkpoint


def test_json_of_an_int8_checkpoint(run, int8_model):
    result = run("inspect", int8_model, "--json", code=0).json
    tensors = load_file(int8_model / "model.safetensors")
    assert {name: t["shape"] for name, t in result["tensors"].items()} == {
        name: list(t.shape) for name, t in tensors.items()
    }
    assert result["bytes"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert len(result["int8_layers"]) == 14
    assert result["int8_layers"]["model.layers.0.mlp.up_proj"] == [48, 32]
    assert result["int8_bytes"] == sum(n * k for n, k in result["int8_layers"].values())
    assert result["quantization"]["threshold"] == 6.0


def test_the_table_groups_layers_and_their_scales(run, int8_model):
    lines = run("inspect", int8_model, code=0).stdout.splitlines()
    (row,) = [line for line in lines if "model.layers.*.mlp.up_proj" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["model.layers.*.mlp.up_proj", "int8", "48 × 32", "2", "3.4 KiB"]  # 2 · (1536 + 4·48 + 1)
    assert lines[-1] == "14 int8 layers; quantization_config: quant_method llmint8, threshold 6.0"


def test_columns_with_16_bit_weights(run, tmp_path):
    save_tiny_checkpoint(tmp_path / "float", hidden_size=64, intermediate_size=200)
    config = Int8Config("auto", outlier_weights="int16")
    convert_checkpoint(tmp_path / "float", tmp_path / "int8", config)
    tensors = load_file(tmp_path / "int8" / "model.safetensors")
    suffix = ".outlier_cols"
    columns = {k.removesuffix(suffix): len(t) for k, t in tensors.items() if k.endswith(suffix)}
    down = {name: count for name, count in columns.items() if name.endswith("down_proj")}
    assert len(down) == 2
    result = run("inspect", tmp_path / "int8", "--json", code=0).json
    assert result["int16_columns"] == columns
    assert result["int8_bytes"] == sum(t.numel() for t in tensors.values() if t.dtype == torch.int8)
    lines = run("inspect", tmp_path / "int8", code=0).stdout.splitlines()
    (row,) = [line for line in lines if "model.layers.*.mlp.down_proj" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    size = sum(200 * 64 + 64 * 4 + 1 + (64 + 4) * count for count in down.values())
    expected = [str(sum(down.values())), f"{size / 1024:.1f} KiB"]
    assert cells == ["model.layers.*.mlp.down_proj", "int8", "64 × 200", "2", *expected]


def test_a_float_checkpoint_and_a_single_file(run, float_model):
    for path in (float_model, float_model / "model.safetensors"):
        assert run("inspect", path, code=0).stdout.endswith("0 int8 layers; quantization_config: none\n")


def test_what_cannot_be_read_is_named(run, tmp_path, int8_model, retensored):
    assert f"{tmp_path / 'none'} does not exist" in run("inspect", tmp_path / "none").error
    assert "holds no .safetensors file" in run("inspect", tmp_path, "--json").error
    folder = retensored(int8_model, lambda t: t.pop("model.layers.1.self_attn.q_proj.SCB"))
    assert "model.layers.1.self_attn.q_proj.SCB is missing" in run("inspect", folder).error


def test_a_path_is_no_markup(run, float_model, tmp_path, monkeypatch):
    (tmp_path / "model[red]").symlink_to(float_model)
    monkeypatch.chdir(tmp_path)
    assert run("inspect", "model[red]", code=0).stdout.startswith("model[red] ")
