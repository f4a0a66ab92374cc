"""What a pickled checkpoint (`pytorch_model.bin`) holds, told without its data or running its code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from llmint8.checkpoint import TensorHeader
from llmint8.errors import CheckpointError

#: safetensors' names of the dtypes that the rules of int8 layers speak of.
_TAGS = {
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}


def read_pickled_headers(files: Iterable[str | Path]) -> dict[str, TensorHeader]:
    """Names, dtypes and shapes of the tensors in files that `torch.save` wrote.

    Raises CheckpointError for a file that torch does not read, or that would run code.
    """
    tensors: dict[str, TensorHeader] = {}
    for file in files:
        try:
            content = torch.load(file, map_location="meta", weights_only=True)
        except Exception as error:  # torch raises anything for a file that is none of its own
            raise CheckpointError(
                f"{file} cannot be read safely as a torch checkpoint; get the model as safetensors"
            ) from error
        if isinstance(content, dict):
            pairs = ((name, t) for name, t in content.items() if isinstance(t, Tensor))
            tensors |= {
                name: TensorHeader(_TAGS.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in pairs
            }
    return tensors
