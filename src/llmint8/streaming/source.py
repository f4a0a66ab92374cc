"""The model that is converted, on disk: every tensor's place in its file, read a block at a time.

Blocks are read with `readinto`, not mapped: pages of a mapping count as memory of the process, and a
conversion must not grow with the model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmint8.checkpoint import read_headers, shard_files
from llmint8.errors import CheckpointError
from llmint8.streaming.dtypes import torch_dtype

#: Bytes read, converted and written at a time: 16 MiB.
BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, its first byte, its dtype and shape."""

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Source:
    """The tensors of a folder of safetensors files, checked before the first one is read.

    tensors: key to `StoredTensor`. files: the shards.
    Raises CheckpointError for a folder that is no such thing, or a file that is torn.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = shard_files(folder)
        read_headers(self.files)  # by safetensors' own library, which checks offsets and sizes
        self._headers = {file: _raw_header(file) for file in self.files}
        self.tensors: dict[str, StoredTensor] = {}
        for file, raw in self._headers.items():
            for key, entry in json.loads(raw).items():
                if key != "__metadata__":
                    dtype = torch_dtype(entry["dtype"], f"{file}: {key}")
                    start = 8 + len(raw) + entry["data_offsets"][0]
                    self.tensors[key] = StoredTensor(file, start, dtype, tuple(entry["shape"]))

    def fingerprint(self) -> list[list[Any]]:
        """What tells this model from another one: names, sizes, times and headers of the files."""
        files = [self.folder / "config.json", *self.files]
        stats = ((file, file.stat()) for file in files)
        digest = {file: hashlib.sha256(raw).hexdigest() for file, raw in self._headers.items()}
        return [[f.name, s.st_size, s.st_mtime_ns, digest.get(f, "")] for f, s in stats]

    def read(self, key: str, first: int = 0, count: int | None = None) -> Tensor:
        """`count` elements of a tensor from `first` on, as one dimension; all of it when None.

        Raises CheckpointError if the file is shorter than its header says.
        """
        stored = self.tensors[key]
        count = stored.numel - first if count is None else count
        data = torch.empty(count, dtype=stored.dtype)
        view = data.view(torch.uint8).numpy().data
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.start + first * data.element_size())
            while view:
                got = file.readinto(view)
                if not got:
                    raise CheckpointError(f"{stored.file} ends within {key}; fetch it again")
                view = view[got:]
        return data

    def blocks(self, key: str, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """A tensor in blocks of about `BLOCK_BYTES`, each a multiple of `multiple` elements.

        Yields the position of the first element and the elements, as one dimension.
        """
        stored = self.tensors[key]
        step = max(1, BLOCK_BYTES // (multiple * stored.dtype.itemsize)) * multiple
        for first in range(0, stored.numel, step):
            yield first, self.read(key, first, min(step, stored.numel - first))


def _raw_header(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(int.from_bytes(opened.read(8), "little"))
