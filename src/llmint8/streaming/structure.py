"""The model as config.json describes it, without data, and the place of every stored tensor in it.

transformers renames, stacks and splits some tensors while it loads. Its own rules are asked here, so that a
converted checkpoint loads to the tensors that quantising while loading gives.
"""

from __future__ import annotations

import importlib
import re
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from llmint8.convert import with_scales
from llmint8.errors import CheckpointError, LLMInt8Error
from llmint8.streaming.source import Source


@dataclass(frozen=True)
class Placed:
    """A stored tensor that becomes one tensor of the model: its key, the model's name, the dtype it gets."""

    key: str
    name: str
    dtype: torch.dtype


@dataclass
class Group:
    """Stored tensors that transformers makes other tensors of while it loads.

    keys: what is stored, in order, with the dtype each gets. targets: the model's names and shapes.
    """

    converter: Any
    first: str
    keys: list[tuple[str, str, torch.dtype]] = field(default_factory=list)
    targets: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def build(self, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors from the stored ones, by key."""
        converter = deepcopy(self.converter)
        for key, pattern, _ in self.keys:
            converter.add_tensor(self.first, key, pattern, lambda tensor=tensors[key]: tensor)
        built = converter.convert(self.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in built.items()}


class Structure:
    """A model without data and the places of a source's tensors in it.

    model: on the meta device, in `dtype`. placed, groups: what becomes of the stored tensors.
    Raises CheckpointError if config.json and the files do not belong together, LLMInt8Error without
    transformers.
    """

    def __init__(self, source: Source, dtype: str) -> None:
        self._loading = _loading_module()
        self.model, self.dtype = _meta_model(source, dtype)
        self._names = dict.fromkeys(self.model.state_dict(), True)
        mapping = importlib.import_module("transformers.conversion_mapping")
        rules = with_scales(mapping.get_model_conversion_mapping(self.model))
        self._renamings = [r for r in rules if isinstance(r, self._loading.WeightRenaming)]
        self._converters = [r for r in rules if isinstance(r, self._loading.WeightConverter)]
        self._exceptions: dict[str, torch.dtype] = self.model._get_dtype_plan(self.dtype)
        self.placed: list[Placed] = []
        self.groups: dict[str, Group] = {}
        self._place(source)

    def rename(self, key: str, names: dict[str, bool]) -> tuple[str, str | None]:
        """The name that a stored key has in a model of these names, and the rule that makes more of it."""
        prefix = self.model.base_model_prefix
        rename = self._loading.rename_source_key
        found: tuple[str, str | None] = rename(key, self._renamings, self._converters, prefix, names)
        if found[0] not in names and key in names:
            found = rename(key, [], [], prefix, names)
        return found

    def stored_name(self, key: str, name: str, suffixes: tuple[str, ...]) -> str | None:
        """How to call a layer in the checkpoint so that loading finds it under `name` again, or None.

        key: of its weight in the source, which is kept where transformers' rules allow it. suffixes: of the
        tensors of the layer, its weight first.
        """
        names = self._names | {name + suffix: True for suffix in suffixes}
        for stored in (key.removesuffix(suffixes[0]), name):
            if all(self.rename(stored + s, names) == (name + s, None) for s in suffixes):
                return stored
        return None

    def scales_of_experts(self, key: str, name: str) -> str | None:
        """How to call the scales of fused experts in the checkpoint so that loading finds them, or None.

        key: of the weight in the source, which is kept. name: of the weight in the model.
        """
        scales = f"{name}_SCB"
        names = self._names | {scales: True}
        stored = f"{key.removesuffix('.weight')}.SCB" if key.endswith(".weight") else f"{key}_SCB"
        follows = self.rename(key, names) == (name, None) and self.rename(stored, names) == (scales, None)
        return stored if follows else None

    def scales_follow(self, key: str, pattern: str, name: str) -> bool:
        """Whether the scales of a stored expert are stacked as its weight is.

        key: of its weight in the source. pattern: the rule that stacks it. name: what the result is called.
        """
        names = self._names | {f"{name}_SCB": True}
        layer = key.removesuffix(".weight")
        found, rule = self.rename(f"{layer}.SCB", names)
        return (
            key != layer
            and (found, rule is None) == (f"{name}_SCB", False)
            and self.rename(key, names) == (name, pattern)
        )

    def _place(self, source: Source) -> None:
        state = self.model.state_dict()
        patterns = {p: c for c in self._converters for p in c.source_patterns}
        unexpected: set[str] = set()
        for key in sorted(source.tensors, key=self._loading.dot_natural_key):
            name, pattern = self.rename(key, self._names)
            if name not in state:
                unexpected.add(key)
                continue
            dtype = self._dtype_of(name, state[name])
            if pattern is None:
                shape = source.tensors[key].shape
                if shape != tuple(state[name].shape):
                    raise _mismatch(source, key, shape, state[name])
                self.placed.append(Placed(key, name, dtype))
            else:
                group = self.groups.setdefault(name, Group(patterns[pattern], name))
                group.keys.append((key, pattern, dtype))
        loaded = {placed.name for placed in self.placed}
        for group in self.groups.values():
            self._trace(group, source, state)
            loaded.update(group.targets)
        self._check_complete(source.folder, set(state) - loaded, unexpected)

    def _dtype_of(self, name: str, empty: Tensor) -> torch.dtype:
        """The dtype that loading gives to a tensor: the model's, but for exceptions of its own."""
        if self._exceptions:
            pattern, by_group, _ = self._loading.build_glob_alternation(list(self._exceptions))
            match = pattern.search(name)
            if match is not None:
                return self._exceptions[by_group[match.lastgroup]]
        return empty.dtype

    def _trace(self, group: Group, source: Source, state: dict[str, Tensor]) -> None:
        """Find the shapes that a group has in the model, by building it without data."""
        stored = {key: source.tensors[key].shape for key, _, _ in group.keys}
        empty = {key: torch.empty(shape, device="meta") for key, shape in stored.items()}
        try:
            built = group.build(self.model, empty)
        except Exception as error:  # an operation of transformers on shapes that do not fit
            raise CheckpointError(
                f"{source.folder}: {next(iter(stored))} and its like cannot become {group.first} "
                f"({' '.join(str(error).split())}); restore the config.json that belongs to the weights"
            ) from error
        for name, tensor in built.items():
            if name in state and tensor.shape != state[name].shape:
                raise _mismatch(source, name, tuple(tensor.shape), state[name])
            group.targets[name] = tuple(tensor.shape)

    def _check_complete(self, folder: Path, missing: set[str], unexpected: set[str]) -> None:
        missing -= set(getattr(self.model, "all_tied_weights_keys", None) or {})
        found = SimpleNamespace(missing_keys=missing, unexpected_keys=unexpected)
        self.model._adjust_missing_and_unexpected_keys(found)
        for names, meaning in (
            (found.missing_keys, "missing in the files"),
            (found.unexpected_keys, "not part of the model"),
        ):
            if names:
                more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
                raise CheckpointError(
                    f"{folder}: {min(names)}{more} {meaning} that config.json describes; "
                    "restore the config.json that belongs to the weights"
                )


def _mismatch(source: Source, key: str, shape: tuple[int, ...], empty: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{source.folder}: {key} is {list(shape)} in the file, but config.json wants {list(empty.shape)}; "
        "restore the config.json that belongs to the weights"
    )


def _loading_module() -> Any:
    try:
        return importlib.import_module("transformers.core_model_loading")
    except ImportError as error:
        raise LLMInt8Error(
            f"transformers cannot be imported ({error}); run: pip install 'llmint8[transformers]'"
        ) from error


def _meta_model(source: Source, dtype: str) -> tuple[Any, torch.dtype]:
    """The model of config.json on the meta device, and its dtype."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
        chosen = _model_dtype(source, config, dtype)
        name = next(iter(config.architectures or ()), "AutoModelForCausalLM")
        kind = getattr(transformers, name)
        build = getattr(kind, "from_config", None) or kind._from_config
        with torch.device("meta"):
            return build(config, dtype=chosen), chosen
    except Exception as error:  # transformers raises anything for a file that it does not understand
        reason = re.sub(r"\s+", " ", str(error) or type(error).__name__)[:160]
        raise CheckpointError(
            f"{source.folder} cannot be loaded ({reason}); check config.json, or fetch the model again"
        ) from error


def _model_dtype(source: Source, config: Any, dtype: str) -> torch.dtype:
    """The dtype that is asked for; "auto": that of config.json, else of the first float tensor stored."""
    stated = config.dtype if dtype == "auto" else dtype
    if stated is not None:
        chosen: torch.dtype = getattr(torch, stated) if isinstance(stated, str) else stated
        return chosen
    floats = (t.dtype for t in source.tensors.values() if t.dtype.is_floating_point)
    return next(floats, torch.float32)
