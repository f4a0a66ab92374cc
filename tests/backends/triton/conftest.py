"""Where the kernels run: on a GPU if there is one, else in Triton's interpreter on tensors of the CPU."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of the least size, so that small layers have several of each kind."""
    from llmint8.backends.triton import plan, tiles

    plan.plan.cache_clear()
    tile, swapped = tiles.Tile(16, 16, 32, 4, 2), tiles.Tile(16, 16, 32, 4, 2, swap=True)
    monkeypatch.setattr(tiles, "FEW_ROWS_WORDS", 1)
    monkeypatch.setattr(tiles, "FEW_ROWS_WARPS", 4)
    monkeypatch.setattr(tiles, "MANY_COLUMNS", 32)
    monkeypatch.setattr(tiles, "MANY_BLOCKS", 3)
    monkeypatch.setattr(tiles, "LARGE_BLOCK", 16)
    for older in ("", "OLDER_"):
        monkeypatch.setattr(tiles, f"{older}SOME_ROWS_TILES", ((None, tile, swapped),))
        monkeypatch.setattr(tiles, f"{older}MANY_ROWS_TILES", ((None, tile),))
    monkeypatch.setattr(tiles, "SECOND_DIGIT_TILE", tile)
    monkeypatch.setattr(tiles, "SECOND_DIGIT_MANY_ROWS_TILE", tile)
    monkeypatch.setattr(tiles, "GRADIENT_TILE", tile)
    monkeypatch.setattr(tiles, "GRADIENT_TILE_FLOAT32", tile)
    monkeypatch.setattr(tiles, "GROUP", 2)
    monkeypatch.setattr(tiles, "ROW_BLOCK", 64)
    monkeypatch.setattr(tiles, "MARKED_ROW_BLOCK", 32)
    monkeypatch.setattr(tiles, "BLOCK_P", 32)
    monkeypatch.setattr(tiles, "LIST_BLOCK", 32)
    monkeypatch.setattr(tiles, "GATHER_ROWS", 16)
    yield
    plan.plan.cache_clear()
