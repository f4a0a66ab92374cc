"""The commands on a checkpoint that bitsandbytes wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integrations.bitsandbytes_files import CHECKPOINT
from llmint8.integrations import bitsandbytes
from tiny import tiny_tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINT, tmp_path / "model", ignore=shutil.ignore_patterns("dequantised"))
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_is_evaluated_even_where_bitsandbytes_would_load_it(
    run: Callable[..., Any], checkpoint: Path
) -> None:
    settings = (checkpoint, "--tokens", 40, "--context", 20, "--json")
    saved = run("eval", *settings, code=0).json
    assert saved["threshold"] == 3.0
    bitsandbytes.disable()
    try:
        assert run("eval", *settings, code=0).json == saved
        assert not bitsandbytes.is_enabled()
    finally:
        bitsandbytes.enable()
    assert run("eval", *settings, "--threshold", "auto", code=0).json["threshold"] == "auto"


def test_it_continues_a_text(run: Callable[..., Any], checkpoint: Path) -> None:
    assert run("generate", checkpoint, "ab", "--max-new-tokens", 3, code=0).stdout


def test_its_layers_are_listed(run: Callable[..., Any], checkpoint: Path) -> None:
    found = run("inspect", checkpoint, "--json", code=0).json
    assert len(found["int8_layers"]) == 6
    assert found["quantization"]["quant_method"] == "bitsandbytes"


def test_it_is_not_quantised_again(run: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    assert "int8 already" in run("quantize", checkpoint, tmp_path / "out").error


def test_four_bits_are_refused(run: Callable[..., Any], checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] |= {"load_in_8bit": False, "load_in_4bit": True}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "quantised already, as 'bitsandbytes'" in run("eval", checkpoint).error


def test_doctor_says_who_runs_eight_bits(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def finding() -> dict[str, str]:
        found = run("doctor", "--json").json["findings"]
        return next(f for f in found if f["subject"] == "BitsAndBytesConfig")

    assert finding()["state"] == "ok"
    monkeypatch.setattr(bitsandbytes, "is_installed", lambda: True)
    assert finding()["state"] == "unused"
    assert "enable()" in finding()["detail"]
