"""Which kernel and which blocks a layer gets, by its shape: data, to be measured and changed as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Columns of a row that share a mark whether one of them has a high digit.
FLAG_K = 64


@dataclass(frozen=True)
class Tile:
    """Blocks of a program, and how Triton compiles it. warps and stages: `num_warps` and `num_stages`."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


#: One launch for layers of at most so many rows. Every program reads all rows, so there must be few.
FEW_ROWS = 16
FEW_ROWS_TILE = Tile(16, 32, 256, 4, 4)
#: The most rows of a layer, and its tile; the last is for any number. From gemlite's table for int8 on an
#: H100, as far as two sums an output fit into the registers of an A100.
MANY_ROWS_TILES = (
    (64, Tile(64, 32, 256, 4, 4)),
    (128, Tile(64, 64, 256, 4, 4)),
    (256, Tile(64, 128, 128, 8, 4)),
    (None, Tile(128, 128, 64, 8, 4)),
)
#: The largest tile of a layer with a second weight digit, which takes a third sum.
SECOND_DIGIT_TILE = Tile(128, 64, 128, 8, 3)
#: The gradient, whose sums run over n; float32 has no tensor cores, and its sums spill sooner.
GRADIENT_TILE, GRADIENT_TILE_FLOAT32 = Tile(128, 32, 128, 8, 3), Tile(64, 16, 64, 4, 2)
#: Blocks of rows that go through the columns together.
GROUP = 8
#: Elements of a row that a program which quantises rows holds at a time.
ROW_BLOCK = 4096
#: The same where a program holds several rows.
SCALE_BLOCK = 512
#: Blocks of an optimizer's state that a program updates.
OPTIMIZER_BLOCKS = 4


def many_rows_tile(m: int, second_digit: bool) -> Tile:
    """The tile of a layer with m rows, that has a second weight digit or not."""
    tile = next(tile for most, tile in MANY_ROWS_TILES if most is None or m <= most)
    too_large = second_digit and tile.m * tile.n > SECOND_DIGIT_TILE.m * SECOND_DIGIT_TILE.n
    return SECOND_DIGIT_TILE if too_large else tile


def gradient_tile(dtype: torch.dtype) -> Tile:
    """The tile of the gradient in a type."""
    return GRADIENT_TILE_FLOAT32 if dtype == torch.float32 else GRADIENT_TILE
