"""Where the kernels run: on a GPU if there is one, else in Triton's interpreter on tensors of the CPU."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the least size, so that small layers have several of each kind."""
    from llmint8.backends.triton import tiles

    tile = tiles.Tile(16, 16, 32, 4, 2)
    monkeypatch.setattr(tiles, "FEW_ROWS_TILE", tile)
    monkeypatch.setattr(tiles, "MANY_ROWS_TILES", ((None, tile),))
    monkeypatch.setattr(tiles, "SECOND_DIGIT_TILE", tile)
    monkeypatch.setattr(tiles, "GRADIENT_TILE", tile)
    monkeypatch.setattr(tiles, "GRADIENT_TILE_FLOAT32", tile)
    monkeypatch.setattr(tiles, "GROUP", 2)
    monkeypatch.setattr(tiles, "ROW_BLOCK", 64)
    monkeypatch.setattr(tiles, "SCALE_BLOCK", 32)
