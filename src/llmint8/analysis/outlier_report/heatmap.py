"""Magnitudes per dimension and layer as pixels: binned by their maximum, coloured, and stored as a PNG."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]

#: Columns of a map at most: three pixels each on a page of 1,200.
MAX_BINS = 384
#: Colours up to the threshold, and from it on: dark blues, then a jump to orange, yellow and white.
_BELOW = np.array([(10, 14, 30), (22, 42, 82), (52, 102, 158)], dtype=np.float64)
_ABOVE = np.array([(226, 88, 34), (250, 178, 44), (255, 246, 190)], dtype=np.float64)
#: The darkest colour is for this share of the threshold and less.
DARKEST = 1 / 64


@dataclass(frozen=True)
class Binned:
    """values: float32 `[B, C]`, the largest magnitude of each bin of `width` neighbouring dimensions.
    at: int64 `[B, C]`, the dimension that has it."""

    values: Tensor
    at: Tensor
    width: int


def bin_dimensions(magnitude: Tensor, limit: int = MAX_BINS) -> Binned:
    """Reduce `[B, K]` to at most `limit` columns, by the maximum, so that no outlier is lost."""
    rows, features = magnitude.shape
    width = math.ceil(features / limit)
    padded = torch.nn.functional.pad(magnitude, (0, -features % width), value=-1.0)
    values, within = padded.reshape(rows, -1, width).max(2)
    return Binned(values, within + torch.arange(values.shape[1]) * width, width)


def colour(values: Tensor, threshold: float, top: float) -> Pixels:
    """uint8 `[..., 3]`, on a logarithmic scale. top: the magnitude of the brightest colour."""
    x = values.double().numpy().clip(min=threshold * DARKEST)
    below = 1 - np.log(threshold / x) / math.log(1 / DARKEST)
    above = np.log(x / threshold) / max(math.log(top / threshold), 1e-9)
    mixed = np.where((x < threshold)[..., None], _mix(_BELOW, below), _mix(_ABOVE, above))
    return mixed.round().astype(np.uint8)


def _mix(colours: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(share, stops, colours[:, channel]) for channel in range(3)], axis=-1)


def encode_png(pixels: Pixels) -> bytes:
    """A PNG of uint8 `[H, W, 3]`."""
    height, width, _ = pixels.shape
    # Each row begins with the filter it was put through: 0, none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def scale_top(largest: float, threshold: float) -> float:
    """The magnitude of the brightest colour: the largest one, but at least twice the threshold."""
    return max(largest, 2 * threshold)
