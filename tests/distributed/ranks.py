"""Runs a function in two processes that share a gloo group, and brings back what each of them returned."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

RANKS = 2

needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo here"
)


def run_ranks(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)`, a module's top-level function, returns in each process, by rank.

    The ranks meet through a file, so no port can be taken by another test. Results pass through `torch.save`.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_one_rank, (folder, function, arguments), RANKS)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def _one_rank(rank: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # transformers reads its size and rank from the variables that torchrun sets.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), HF_HUB_OFFLINE="1")
    warnings.filterwarnings("ignore", message="Passing `tp_plan` directly", category=FutureWarning)
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
