"""The names that safetensors gives to torch's dtypes."""

from __future__ import annotations

import torch

from llmint8.errors import CheckpointError

_BY_TAG = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_TAGS = {dtype: tag for tag, dtype in _BY_TAG.items()}


def torch_dtype(tag: str, name: str) -> torch.dtype:
    """The dtype of a tag, as a header holds it. Raises CheckpointError for an unknown one."""
    if tag not in _BY_TAG:
        raise CheckpointError(f"{name} is of type {tag!r}, which cannot be converted; convert a float model")
    return _BY_TAG[tag]


def dtype_tag(dtype: torch.dtype) -> str:
    """The tag of a dtype, as a header holds it."""
    return _TAGS[dtype]
