"""The checkpoint that bitsandbytes wrote, and what several tests do with it."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

#: Written by bitsandbytes itself, see write_bitsandbytes_checkpoint.py.
CHECKPOINT = Path(__file__).parent / "bitsandbytes_checkpoint"


def stored_tensors(folder: Path = CHECKPOINT) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder."""
    return {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """The same names, and under each the same dtype, shape and values."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """The same for what two modules hold."""
    assert_same_tensors(a.state_dict(), b.state_dict())
