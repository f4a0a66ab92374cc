"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmint8.errors import CheckpointError, LLMInt8Error


def save_model(model: Any, folder: Path) -> None:
    """`model.save_pretrained(folder)`. Raises CheckpointError if that fails, for whatever reason."""
    try:
        model.save_pretrained(folder)
    except Exception as error:  # a full disk is a SafetensorError, bad generation settings a ValueError
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the model cannot be saved ({reason}); nothing was written") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its place at the end, or is removed on failure."""
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        beside.mkdir()
        yield beside
        _replace(out, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace(out: Path, new: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def check_file(file: Path, option: str, suffix: str = "") -> None:
    """Raise LLMInt8Error unless `file` may be written, before the work that is to fill it.

    option: what the error names. suffix: how its name must end.
    """
    if not file.name.endswith(suffix):
        raise LLMInt8Error(f"{option} {file}: the name must end in {suffix}")
    if file.is_dir():
        raise LLMInt8Error(f"{option} {file} is a folder; give the name of a file")
    if not file.parent.is_dir():
        raise LLMInt8Error(f"{option} {file}: {file.parent} is no folder; create it first")
    if not os.access(file.parent, os.W_OK):
        raise LLMInt8Error(f"{option} {file}: {file.parent} cannot be written to; choose another folder")


def write_file(file: Path, content: bytes) -> None:
    """Write a file beside `file` that takes its place at the end, or is removed on failure."""
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        beside.write_bytes(content)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
