"""A small float model in a folder, and what a folder holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiny import save_tiny_checkpoint

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def float_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer; not to be changed."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("float") / "model")


def contents(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every file."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
