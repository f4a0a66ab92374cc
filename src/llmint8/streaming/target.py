"""The folder that is written: whether it may be, whether there is room, and how large its files are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from llmint8.convert import human_bytes
from llmint8.errors import CheckpointError, ConfigError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def check_target(out: Path, force: bool, source: Path) -> None:
    """Raise CheckpointError unless `out` may be written: it is new, or a checkpoint and `force` is on.

    source: a folder that must survive, whatever `force` says.
    """
    if not out.parent.is_dir():
        raise CheckpointError(f"{out.parent} is no folder; create it first")
    if source.resolve().is_relative_to(out.resolve()):
        raise CheckpointError(f"{out} holds the model that is read; choose another folder")
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise CheckpointError(f"{out} exists already; choose another folder, or replace it with --force")
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").exists()):
        raise CheckpointError(
            f"{out} is no checkpoint folder, so --force does not replace it; remove it yourself"
        )


def check_space(folder: Path, needed: int) -> None:
    """Raise CheckpointError unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"the disk of {folder} has {human_bytes(free)} free ({free} bytes), but {human_bytes(needed)} "
            f"are needed ({needed} bytes); free some space, or choose another folder"
        )


def parse_size(size: int | str) -> int:
    """Bytes from 5000000, "5MB" or "4.5 GiB". Raises ConfigError for anything else, or less than one."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = _UNITS.get(match[2].upper()) if match else None
    count = int(float(match[1]) * unit) if match and unit else 0
    if count < 1:
        raise ConfigError(f"max_shard_size must be a size such as 5GB, 500MB or 2GiB, got {size!r}")
    return count
