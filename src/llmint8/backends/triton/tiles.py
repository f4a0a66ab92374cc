"""Which kernel and which blocks a layer gets, by its shape: data, to be measured and changed as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """Blocks of a program, and how Triton compiles it. warps and stages: `num_warps` and `num_stages`.

    swap: weights on the left of the product. fill: programs for each processor for which blocks are split.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    swap: bool = False
    fill: int = 1


_Table = tuple[tuple[int | None, Tile, Tile], ...]


@dataclass(frozen=True)
class FewRowsTile:
    """n: columns of a block. programs: so many for each processor."""

    n: int
    warps: int
    programs: int


#: One launch, without tensor cores, for layers of at most so many rows, features, and columns with a second
#: weight digit.
FEW_ROWS, FEW_ROWS_MOST_K, FEW_ROWS_MOST_P = 1, 16_384, 128
#: Weights that a thread of such a program has on the way, in words of four, and warps of a processor.
FEW_ROWS_WORDS, FEW_ROWS_WARPS = 32, 16
#: From so many large blocks of outputs on there are many rows; below, both digits meet weights in one pass.
MANY_BLOCKS, LARGE_BLOCK = 120, 128
#: Columns from which on there are many.
MANY_COLUMNS = 8192
#: The most rows of a layer, and its tile where columns are few, and where they are many. Measured on an H200.
SOME_ROWS_TILES: _Table = (
    (16, Tile(16, 64, 256, 4, 4, swap=True, fill=2), Tile(16, 64, 256, 4, 4, swap=True, fill=2)),
    (32, Tile(32, 64, 128, 4, 5, swap=True, fill=2), Tile(32, 64, 128, 4, 5, swap=True, fill=2)),
    (64, Tile(64, 64, 256, 4, 3), Tile(64, 64, 128, 4, 4, swap=True)),
    (128, Tile(64, 64, 256, 4, 3), Tile(64, 128, 128, 4, 3, swap=True)),
    (None, Tile(64, 64, 128, 4, 4, fill=2), Tile(64, 128, 128, 4, 3, swap=True)),
)
#: The most large blocks of a layer with many rows, and its tile.
MANY_ROWS_TILES: tuple[tuple[int | None, Tile], ...] = (
    (200, Tile(128, 64, 128, 4, 4)),
    (None, Tile(128, 128, 128, 4, 3)),
)
#: The largest tiles of layers with a second weight digit, which takes two more sums, or one with many rows.
SECOND_DIGIT_TILE, SECOND_DIGIT_MANY_ROWS_TILE = Tile(64, 64, 128, 4, 3), Tile(128, 64, 128, 4, 4)
#: The same for other GPUs, as far as sums fit into the registers of an A100. Not measured.
OLDER_SOME_ROWS_TILES: _Table = (
    (16, Tile(16, 32, 128, 4, 5, fill=2), Tile(16, 64, 128, 4, 5, fill=2)),
    (None, Tile(64, 64, 64, 4, 4), Tile(64, 64, 64, 4, 4)),
)
OLDER_MANY_ROWS_TILES: tuple[tuple[int | None, Tile], ...] = ((None, Tile(128, 64, 64, 8, 4)),)
#: The gradient, whose sums run over n; float32 has no tensor cores, and its sums spill sooner.
GRADIENT_TILE, GRADIENT_TILE_FLOAT32 = Tile(128, 32, 128, 8, 3), Tile(64, 16, 64, 4, 2)
#: Blocks of rows that go through the columns together.
GROUP = 8
#: Gathered columns that are multiplied at a time, and rows of which a program gathers.
BLOCK_P, GATHER_ROWS = 64, 32
#: Columns that a program lists.
LIST_BLOCK = 1024
#: Elements of a row that a program which quantises rows holds at a time.
ROW_BLOCK = 16_384
#: The same where it marks columns, which takes registers.
MARKED_ROW_BLOCK = 4096
#: Blocks of an optimizer's state that a program updates.
OPTIMIZER_BLOCKS = 4


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own takes longer than a small kernel."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least power of two that is not less than n >= 1."""
    return 1 << (n - 1).bit_length()


def row_warps(block: int) -> int:
    """Warps of a program that quantises so many elements of a row at a time."""
    return 4 if block <= 4096 else 8


def few_rows_tile(k: int) -> FewRowsTile:
    """The tile of a layer with at most FEW_ROWS rows of k features."""
    words = power_of_2(k // 4)
    warps = 4 if words <= 2048 else 8
    return FewRowsTile(max(1, FEW_ROWS_WORDS * 32 * warps // words), warps, FEW_ROWS_WARPS // warps)


def _large_blocks(m: int, n: int) -> int:
    return ceil_div(m, LARGE_BLOCK) * ceil_div(n, LARGE_BLOCK)


def are_many(m: int, n: int) -> bool:
    """Whether a layer with m rows and n columns has many rows."""
    return _large_blocks(m, n) >= MANY_BLOCKS


def _smaller(tile: Tile, limit: Tile) -> Tile:
    return limit if tile.m * tile.n > limit.m * limit.n else tile


def some_rows_tile(m: int, n: int, second_digit: bool, hopper: bool) -> Tile:
    """The tile of a layer with m rows, not many, and n columns, that has a second weight digit or not.

    hopper: on such a GPU.
    """
    table = SOME_ROWS_TILES if hopper else OLDER_SOME_ROWS_TILES
    _, few, many = next(row for row in table if row[0] is None or m <= row[0])
    tile = few if n < MANY_COLUMNS else many
    return _smaller(tile, SECOND_DIGIT_TILE) if second_digit else tile


def many_rows_tile(m: int, n: int, second_digit: bool, hopper: bool) -> Tile:
    """The tile of a layer with many rows."""
    table, blocks = MANY_ROWS_TILES if hopper else OLDER_MANY_ROWS_TILES, _large_blocks(m, n)
    tile = next(tile for most, tile in table if most is None or blocks <= most)
    return _smaller(tile, SECOND_DIGIT_MANY_ROWS_TILE) if second_digit else tile


def split(blocks: int, steps: int, programs: int) -> int:
    """How many programs share a block of outputs, whose features take so many steps: `programs` in all."""
    parts = 1
    while 2 * parts * blocks <= programs and 2 * parts <= steps:
        parts *= 2
    return parts


def gradient_tile(dtype: torch.dtype) -> Tile:
    """The tile of the gradient in a type."""
    return GRADIENT_TILE_FLOAT32 if dtype == torch.float32 else GRADIENT_TILE
