"""One safetensors file, written a block at a time: its header is known before its first tensor."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from llmint8.streaming.dtypes import dtype_tag


@dataclass(frozen=True)
class Output:
    """A tensor of the converted model: its key, dtype and shape."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


class Layout:
    """Where each tensor lies in a file: the header's bytes, and the first byte of each tensor.

    Wide dtypes come first, so that every tensor is aligned for its dtype.
    """

    def __init__(self, outputs: Sequence[Output]) -> None:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self.starts: dict[str, int] = {}
        end = 0
        for output in sorted(outputs, key=lambda o: -o.dtype.itemsize):
            start, end = end, end + output.nbytes
            tag, shape = dtype_tag(output.dtype), list(output.shape)
            entries[output.key] = {"dtype": tag, "shape": shape, "data_offsets": [start, end]}
            self.starts[output.key] = start
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end

    def holds(self, file: Path) -> bool:
        """Whether a file has this header and this size."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        with file.open("rb") as opened:
            return opened.read(len(self.header)) == self.header


class ShardWriter:
    """Writes the tensors of a layout in any order; the file has its name only when it is whole and on disk.

    A context manager: an error leaves nothing under the file's name.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._torn = path.with_name(path.name + ".torn")

    def __enter__(self) -> ShardWriter:
        self._file = self._torn.open("wb")
        self._file.write(self._layout.header)
        return self

    def write(self, key: str, tensor: Tensor, first: int = 0) -> None:
        """Write a block of a tensor, of its dtype; `first`: the position of its first element."""
        at = self._layout.starts[key] + first * tensor.element_size()
        self._file.seek(len(self._layout.header) + at)
        self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._file.truncate(self._layout.size)
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None:
            self._torn.rename(self._path)
            sync_folder(self._path.parent)
        else:
            self._torn.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk: a rename is safe only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """Write a text file whole: under another name first, and to the disk before it gets its own."""
    torn = file.with_name(file.name + ".torn")
    with torn.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    torn.rename(file)
    sync_folder(file.parent)
