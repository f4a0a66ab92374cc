"""Int8 checkpoints through accelerate; imported once accelerate is, and to import this module is to register.

accelerate's loader leaves out every tensor named `SCB`, which it keeps for bitsandbytes: the codes of an int8
layer would arrive without their scales. So its loader is followed by one that reads them.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import modeling, offload
from safetensors import safe_open
from torch import Tensor, nn

from llmint8.checkpoint import TensorHeader, check_tensors, is_int8_weight, read_headers, shard_files
from llmint8.errors import CheckpointError
from llmint8.integrations.import_hook import replace_function
from llmint8.nn import Int8Linear

_load_checkpoint_in_model: Any = modeling.load_checkpoint_in_model
_SIGNATURE = inspect.signature(_load_checkpoint_in_model)


@functools.wraps(_load_checkpoint_in_model)
def _load_int8_checkpoint_in_model(*args: Any, **kwargs: Any) -> None:
    """accelerate's loader, and the scales of all int8 layers after it.

    Raises CheckpointError, before anything is loaded, if the checkpoint does not hold the int8 layers that
    the model has: accelerate would cast float weights to codes.
    """
    given = _SIGNATURE.bind(*args, **kwargs).arguments
    model: nn.Module = given["model"]
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    if not layers:
        _load_checkpoint_in_model(*args, **kwargs)
        return
    files = _safetensors_files(Path(given["checkpoint"]))
    headers = read_headers(files)
    check_tensors(headers)
    for name, layer in layers.items():
        _check_stored(name, layer, headers)
    _load_checkpoint_in_model(*args, **kwargs)
    scales = _read_scales(files, layers)
    for name, layer in layers.items():
        _set_scales(layer, scales[name])
        reason = layer.invalid_state()
        if reason is not None:
            raise CheckpointError(f"{name}: {reason}; convert the model again")
    folder, devices = given.get("offload_folder"), given.get("device_map") or {}
    if folder is not None and "disk" in devices.values():
        _offload_scales(scales, str(folder))


def _safetensors_files(path: Path) -> list[Path]:
    """The files that accelerate reads when it is given this path."""
    if path.is_dir():
        return shard_files(path)
    return shard_files(path.parent) if path.suffix == ".json" else [path]


def _check_stored(name: str, layer: Int8Linear, headers: dict[str, TensorHeader]) -> None:
    key = f"{name}.weight"
    found = headers.get(key)
    if found is None or not is_int8_weight(key, found) or found.shape != tuple(layer.weight.shape):
        held = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise CheckpointError(
            f"{key} is int8 {list(layer.weight.shape)} in the model, but the checkpoint holds {held}; "
            "give the int8 checkpoint that fits the model"
        )


def _read_scales(files: list[Path], layers: dict[str, Int8Linear]) -> dict[str, Tensor]:
    scales: dict[str, Tensor] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                name = key.removesuffix(".SCB")
                if name != key and name in layers:
                    scales[name] = handle.get_tensor(key)
    return scales


def _set_scales(layer: Int8Linear, scales: Tensor) -> None:
    # Scales are small: those of a layer on the meta device (offloaded) stay in memory.
    device = torch.device("cpu") if layer.weight.is_meta else layer.weight.device
    if isinstance(layer.SCB, nn.Parameter):
        layer.SCB = nn.Parameter(scales.to(device), requires_grad=False)
    else:
        layer.SCB = scales.to(device)


def _offload_scales(scales: dict[str, Tensor], folder: str) -> None:
    """Write the scales beside the offloaded codes, for those who offload buffers too."""
    index: dict[str, Any] = {}
    for name, tensor in scales.items():
        offload.offload_weight(tensor, f"{name}.SCB", folder, index)
    offload.save_offload_index(index, folder)


replace_function(_load_checkpoint_in_model, _load_int8_checkpoint_in_model)
