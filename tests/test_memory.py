"""Memory for weights: zeros wherever they are asked for, and advice that Linux has kept."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from llmint8 import memory
from llmint8.nn import Int8Embedding, Int8Linear

HUGE_PAGE = 2 << 20
SMAPS = Path("/proc/self/smaps")
needs_huge_pages = pytest.mark.skipif(
    not (
        hasattr(mmap, "MADV_HUGEPAGE")
        and Path("/sys/kernel/mm/transparent_hugepage").exists()
        and SMAPS.exists()
    ),
    reason="the system has no huge pages on request",
)


def is_advised(address: int) -> bool:
    """Whether Linux was asked for huge pages where an address lies ("hg" among the flags of its mapping)."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"{address:#x} is not mapped")


@pytest.mark.parametrize("shape", [(), (0, 5), (3,), (1024, 2047), (1024, 2048), (3, 1024, 1025)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_zeros_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = memory.zeros(shape, dtype)
    assert torch.equal(found, torch.zeros(shape, dtype=dtype))
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == found.nbytes


def test_other_devices_are_as_torch_has_them() -> None:
    assert memory.zeros((2048, 2048), device="meta").is_meta
    with torch.device("meta"):
        assert memory.zeros((2048, 2048)).is_meta


def test_without_huge_pages_memory_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(memory.mmap, "mmap", fail)
    assert not memory.zeros((1024, 2048)).any()


@needs_huge_pages
def test_whole_huge_pages_are_asked_for_and_no_more() -> None:
    weight = memory.zeros((1025, 2048))
    begin = weight.data_ptr()
    assert begin % HUGE_PAGE == 0
    assert is_advised(begin)
    assert is_advised(begin + HUGE_PAGE - 1)
    assert not is_advised(begin + HUGE_PAGE)


@needs_huge_pages
def test_weights_that_llmint8_makes_lie_there() -> None:
    shape = (1024, 2048)
    made = [
        Int8Linear.from_weight(torch.ones(shape)),
        Int8Linear(*reversed(shape), bias=False),
        Int8Embedding(*shape),
    ]
    assert all(is_advised(module.weight.data_ptr()) for module in made)


def test_a_view_keeps_the_memory() -> None:
    row = memory.zeros((1024, 2048)).fill_(3)[7]
    torch.empty(1 << 22).fill_(1)
    assert row.eq(3).all()
