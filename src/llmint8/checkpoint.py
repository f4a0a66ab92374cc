"""Checkpoints on disk: what their safetensors headers promise, checked before a byte of weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llmint8.errors import CheckpointError

_BYTES = {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8}


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a checkpoint: safetensors' dtype tag, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class CheckpointSummary:
    """What a checkpoint folder holds: its quantisation config, the int8 layers, all tensors."""

    path: Path
    quantization: dict[str, Any] | None
    tensors: dict[str, TensorHeader]

    @property
    def int8_layers(self) -> dict[str, TensorHeader]:
        """Name of each int8 layer and its weight."""
        weights = ((n.removesuffix(".weight"), t) for n, t in self.tensors.items() if is_int8_weight(n, t))
        return dict(weights)

    @property
    def int8_experts(self) -> dict[str, TensorHeader]:
        """Name of each int8 tensor that holds one weight of all experts of a layer, and the tensor."""
        return {n: t for n, t in self.tensors.items() if is_int8_experts(n, t)}

    @property
    def int16_columns(self) -> dict[str, int]:
        """Name of each int8 layer with a second weight digit, and how many of its columns have one."""
        columns = ((n, t) for n, t in self.tensors.items() if n.endswith(".outlier_cols"))
        return {name.removesuffix(".outlier_cols"): tensor.shape[0] for name, tensor in columns}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())


def is_int8_weight(name: str, tensor: TensorHeader) -> bool:
    """Whether a tensor is the codes of an int8 linear layer `[N, K]`, or of experts stored like one
    `[E, N, K]`."""
    return name.endswith(".weight") and tensor.dtype == "I8" and len(tensor.shape) in (2, 3)


def is_int8_experts(name: str, tensor: TensorHeader) -> bool:
    """Whether a tensor is the codes of one weight of fused experts."""
    return not name.endswith(".weight") and tensor.dtype == "I8" and len(tensor.shape) == 3


def read_headers(files: Iterable[str | Path]) -> dict[str, TensorHeader]:
    """Names, dtypes and shapes of all tensors in safetensors files.

    Raises CheckpointError for a file that is missing, torn or no safetensors, and for a tensor that two files
    hold.
    """
    tensors: dict[str, TensorHeader] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - not a dict
                    if name in tensors:
                        raise CheckpointError(
                            f"{file} holds {name}, which another file holds too; remove the file that does "
                            "not belong to the model"
                        )
                    view = handle.get_slice(name)
                    tensors[name] = TensorHeader(view.get_dtype(), tuple(view.get_shape()))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file} is missing, though the checkpoint names it; fetch it again"
            ) from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is torn or not a safetensors file ({error}); fetch or convert it again"
            ) from error
    return tensors


def check_tensors(tensors: dict[str, TensorHeader]) -> None:
    """Raise CheckpointError for int8 tensors that do not belong together.

    Every weight `[N, K]` has `SCB` float32 `[N]`, every weight of experts `[E, N, K]` its scales float32
    `[E, N]`, and the reverse; `outlier_cols` int32 `[P]` and `weight_low` int8 `[N, P]` come together.
    """
    for name, tensor in tensors.items():
        if name.endswith((".outlier_cols", ".weight_low")):
            _check_second_digit(name.rpartition(".")[0], tensors)
        codes = _codes_of(name)
        if codes is not None and codes not in tensors:
            raise CheckpointError(
                f"{codes} is missing: the codes that {name} scales; convert the model again"
            )
        if is_int8_weight(name, tensor):
            scales = name.removesuffix("weight") + "SCB"
        elif is_int8_experts(name, tensor):
            scales = f"{name}_SCB"
        else:
            continue
        scb = tensors.get(scales)
        if scb is None:
            raise CheckpointError(f"{scales} is missing: the scales of {name}; convert the model again")
        if scb.dtype != "F32" or scb.shape != tensor.shape[:-1]:
            raise CheckpointError(
                f"{scales} is {scb.dtype} {list(scb.shape)}, but {name} {list(tensor.shape)} "
                f"needs F32 {list(tensor.shape[:-1])}; convert the model again"
            )


def _check_second_digit(layer: str, tensors: dict[str, TensorHeader]) -> None:
    keys = [f"{layer}.{kind}" for kind in ("weight", "outlier_cols", "weight_low")]
    for key in keys:
        if key not in tensors:
            raise CheckpointError(
                f"{key} is missing: {layer} has a second weight digit only with all of {', '.join(keys)}; "
                "convert the model again"
            )
    weight, columns, low = (tensors[key] for key in keys)
    wanted = (*weight.shape[:1], *columns.shape)
    if columns.dtype != "I32" or len(columns.shape) != 1 or low.dtype != "I8" or low.shape != wanted:
        raise CheckpointError(
            f"{keys[1]} is {columns.dtype} {list(columns.shape)} and {keys[2]} is {low.dtype} "
            f"{list(low.shape)}, but {keys[0]} {list(weight.shape)} needs I32 [P] and I8 "
            f"[{weight.shape[0]}, P]; convert the model again"
        )


def _codes_of(name: str) -> str | None:
    """The key of the codes that a tensor scales, or None if it is no scales."""
    if name.endswith(".SCB"):
        return name.removesuffix("SCB") + "weight"
    return name.removesuffix("_SCB") if name.endswith("_SCB") else None


def inspect_checkpoint(path: str | Path) -> CheckpointSummary:
    """Read the headers of a checkpoint: a folder that transformers wrote, or one safetensors file.

    Raises CheckpointError if there is nothing to read, a shard is missing, or an int8 layer lacks its scales.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a checkpoint folder or a .safetensors file")
    files = shard_files(path) if path.is_dir() else [path]
    tensors = read_headers(files)
    check_tensors(tensors)
    _check_scales(files, tensors)
    return CheckpointSummary(path, read_quantization(path), tensors)


def _check_scales(files: Iterable[Path], tensors: dict[str, TensorHeader]) -> None:
    """Raise CheckpointError for a scale that no conversion gives; the codes are not read."""
    for file in files:
        with safe_open(str(file), framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                if _codes_of(name) is None or tensors[name].dtype != "F32":
                    continue
                scales = handle.get_tensor(name)
                if not bool(((scales >= 0) & scales.isfinite()).all()):
                    layer = name.removesuffix(".SCB")
                    raise CheckpointError(
                        f"{layer}: SCB holds a negative or non-finite value; convert the model again"
                    )


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, all inside it.

    Raises CheckpointError if there are none, if an index contradicts them, or if one is a link out of the
    folder.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
        if pickled:
            raise CheckpointError(
                f"{folder} holds pickled weights ({pickled[0]}), which can run code and are never read; "
                "save the model as safetensors, with save_pretrained, where you trust it"
            )
        raise CheckpointError(f"{folder} holds no .safetensors file; is it a model folder?")
    for file in files:
        check_inside(file, folder)
    return files


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} holds no weight_map of tensor to file; fetch it again")
    files = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    for name, file in files.items():
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names {name!r}, which leaves the folder; the index is not to be trusted"
            )
        check_inside(file, index.parent)
    for name, file in files.items():
        stored = read_headers([file])
        lost = sorted(key for key, place in weight_map.items() if place == name and key not in stored)
        if lost:
            raise CheckpointError(
                f"{index} places {lost[0]} in {name}, which does not hold it; fetch both again"
            )
    return list(files.values())


def check_inside(file: Path, folder: Path) -> None:
    """Raise CheckpointError if a file is a link to somewhere outside its model folder.

    The cache of a hub keeps a model's files beside its snapshots, and links to them: that is inside.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if not file.resolve().is_relative_to(root):
        raise CheckpointError(
            f"{file} is a link out of the folder, to {file.resolve()}; put the file itself there"
        )


def check_loaded_files(files: Iterable[str | Path], folder: str) -> None:
    """Raise CheckpointError for a file that transformers is about to load from outside of the model's folder.

    folder: the name of the model; where it is no local folder, all files must lie in one.
    """
    paths = [Path(file) for file in files]
    root = Path(folder) if Path(folder).is_dir() else None
    for file in paths:
        inside = root or paths[0].parent
        if not file.is_relative_to(inside) or ".." in file.relative_to(inside).parts:
            raise CheckpointError(
                f"{file} lies outside of {inside}, yet the index names it; the index is not to be trusted"
            )
        check_inside(file, inside)


def read_quantization(path: Path) -> dict[str, Any] | None:
    """The `quantization_config` of a checkpoint's config.json, or None."""
    file = path / "config.json"
    if not path.is_dir() or not file.exists():
        return None
    found = read_json(file).get("quantization_config")
    if found is not None and not isinstance(found, dict):
        raise CheckpointError(f"{file}: quantization_config is no JSON object; fetch it again")
    return found


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError if it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object; fetch it again")
    return content
