"""Int8 checkpoints through accelerate; imported once accelerate is, and to import this module is to register.

accelerate's loader leaves out every tensor named `SCB`, which it keeps for bitsandbytes: the codes of an int8
layer would arrive without their scales. So its loader is followed by one that reads them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate.utils import modeling, offload
from safetensors import safe_open
from torch import Tensor, nn

from llmint8.checkpoint import (
    TensorHeader,
    check_tensors,
    inspect_checkpoint,
    is_int8_weight,
    read_headers,
    shard_files,
)
from llmint8.config import Int8Config
from llmint8.convert import empty_like, is_linear, replace_modules
from llmint8.errors import CheckpointError
from llmint8.integrations.import_hook import replace_function
from llmint8.nn import Int8Embedding, Int8Linear, is_embedding
from llmint8.numerics import PAPER_THRESHOLD, ROW_MAJOR

_load_checkpoint_in_model: Any = modeling.load_checkpoint_in_model
_Layer: TypeAlias = Int8Linear | Int8Embedding
#: What accelerate does not load into an int8 layer, or not where its codes are offloaded.
_LEFT_OUT = ("SCB", "weight_format", "outlier_cols", "weight_low")
_SIGNATURE = inspect.signature(_load_checkpoint_in_model)


def empty_int8_model(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Give a model without weights the int8 layers that a checkpoint holds, in place; return the model.

    model: made under `accelerate.init_empty_weights()`. Its int8 layers are on the meta device, to be filled
        by `load_checkpoint_and_dispatch`; what the checkpoint holds as floats stays as it is.
    checkpoint: a folder that llmint8, or transformers with bitsandbytes, wrote.
    Raises CheckpointError if a file is missing or torn, or an int8 weight has no layer of its name.
    """
    summary = inspect_checkpoint(checkpoint)
    settings = _settings(summary.quantization or {})
    modules = {name: m for name, m in model.named_modules() if is_linear(m) or is_embedding(m)}
    for name in summary.int8_layers:
        if name not in modules:
            raise CheckpointError(
                f"{name} is int8 in {checkpoint}, but the model has no layer of that name; make the "
                "model from the config.json of the checkpoint, or use from_pretrained, which renames tensors"
            )
    weights = {id(modules[name].weight): name for name in summary.int8_layers}
    tied = {name: weights[id(m.weight)] for name, m in modules.items() if id(m.weight) in weights}
    columns = summary.int16_columns

    def build(name: str, source: nn.Module) -> nn.Module:
        return empty_like(source, settings.threshold_of(name), columns.get(name, 0))

    replace_modules(model, tied, build)
    for name, source in tied.items():
        model.get_submodule(name).weight = model.get_submodule(source).weight
    return model


def _settings(found: Mapping[str, Any]) -> Int8Config:
    """The thresholds that a `quantization_config` means, ours or that of bitsandbytes."""
    if found.get("quant_method") == "llmint8":
        return Int8Config.from_dict(found)
    return Int8Config(found.get("llm_int8_threshold", PAPER_THRESHOLD))


@functools.wraps(_load_checkpoint_in_model)
def _load_int8_checkpoint_in_model(*args: Any, **kwargs: Any) -> None:
    """accelerate's loader, and the scales of all int8 layers after it.

    Raises CheckpointError, before anything is loaded, if the checkpoint does not hold the int8 layers that
    the model has: accelerate would cast float weights to codes.
    """
    given = _SIGNATURE.bind(*args, **kwargs).arguments
    model: nn.Module = given["model"]
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear | Int8Embedding)}
    if not layers:
        _load_checkpoint_in_model(*args, **kwargs)
        return
    files = _safetensors_files(Path(given["checkpoint"]))
    headers = read_headers(files)
    check_tensors(headers)
    stored_as = _stored_names(layers, headers)
    for name, layer in layers.items():
        _check_stored(stored_as[name], layer, headers)
    _load_checkpoint_in_model(*args, **kwargs)
    left_out = _read_left_out(files, layers)
    for name, layer in layers.items():
        stored = stored_as[name]
        _set_left_out(layer, {kind: left_out.get(f"{stored}.{kind}") for kind in _LEFT_OUT})
        reason = layer.invalid_state()
        if reason is not None:
            raise CheckpointError(f"{name}: {reason}; convert the model again")
    folder, devices = given.get("offload_folder"), given.get("device_map") or {}
    if folder is not None and "disk" in devices.values():
        _offload_scales(left_out, str(folder))


def _stored_names(layers: Mapping[str, _Layer], headers: Mapping[str, TensorHeader]) -> dict[str, str]:
    """Where the tensors of each layer are stored: under its name, or that of one it shares a weight with."""
    stored = {id(m.weight): name for name, m in layers.items() if f"{name}.weight" in headers}
    return {n: n if f"{n}.weight" in headers else stored.get(id(m.weight), n) for n, m in layers.items()}


def _safetensors_files(path: Path) -> list[Path]:
    """The files that accelerate reads when it is given this path."""
    if path.is_dir():
        return shard_files(path)
    return shard_files(path.parent) if path.suffix == ".json" else [path]


def _check_stored(name: str, layer: _Layer, headers: dict[str, TensorHeader]) -> None:
    key = f"{name}.weight"
    found = headers.get(key)
    if found is None or not is_int8_weight(key, found) or found.shape != tuple(layer.weight.shape):
        held = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise CheckpointError(
            f"{key} is int8 {list(layer.weight.shape)} in the model, but the checkpoint holds {held}; "
            "give the int8 checkpoint that fits the model"
        )


def _read_left_out(files: list[Path], layers: Mapping[str, _Layer]) -> dict[str, Tensor]:
    """What accelerate skips: scales, and buffers of layers that go to disk."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                name, _, kind = key.rpartition(".")
                if kind in _LEFT_OUT and name in layers:
                    tensors[key] = handle.get_tensor(key)
    return tensors


def _set_left_out(layer: _Layer, stored: dict[str, Tensor | None]) -> None:
    # They are small: those of a layer whose codes are offloaded stay in memory.
    device = torch.device("cpu") if layer.weight.is_meta else layer.weight.device
    if stored["weight_format"] is None:  # early bitsandbytes releases wrote none
        stored["weight_format"] = torch.tensor(ROW_MAJOR, dtype=torch.uint8)
    for kind, tensor in stored.items():
        held = getattr(layer, kind, None)
        if tensor is None:
            if held is not None:  # columns of what the layer held before
                setattr(layer, kind, None)
            continue
        parameter = isinstance(held, nn.Parameter)
        tensor = tensor.to(device)
        setattr(layer, kind, nn.Parameter(tensor, requires_grad=False) if parameter else tensor)


def _offload_scales(tensors: dict[str, Tensor], folder: str) -> None:
    """Write the scales beside the offloaded codes, for those who offload buffers too."""
    index: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name.endswith(".SCB"):
            offload.offload_weight(tensor, name, folder, index)
    offload.save_offload_index(index, folder)


replace_function(_load_checkpoint_in_model, _load_int8_checkpoint_in_model)
