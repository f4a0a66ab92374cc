"""Which job each stored tensor gets: weights of modules that become int8 are quantised, the rest copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from llmint8.convert import is_linear
from llmint8.nn import expert_weights, is_conv1d, is_experts
from llmint8.streaming.formats import Llmint8
from llmint8.streaming.jobs import Copy, Job, Quantize, QuantizeExperts
from llmint8.streaming.shard import Output
from llmint8.streaming.source import Source
from llmint8.streaming.structure import Group, Placed, Structure


class Assignment:
    """jobs: in the order of the stored tensors. int8: the modules whose every weight is quantised.

    wanted: the modules that should become int8. One stays float if transformers makes its weight from others
    in a way that their scales cannot follow. columns: those with a second weight digit, by module.
    """

    def __init__(
        self,
        source: Source,
        structure: Structure,
        form: Llmint8,
        wanted: Iterable[str],
        columns: Mapping[str, Tensor],
    ) -> None:
        self._source, self._structure, self._format = source, structure, form
        self._columns = columns
        modules = dict(structure.model.named_modules())
        self._weights: dict[str, nn.Module] = {}
        quantised: set[str] = set()
        for name in wanted:
            for weight in _weights(modules[name]):
                self._weights[f"{name}.{weight}"] = modules[name]
        self.jobs: list[Job] = []
        for placed in structure.placed:
            job = self._of_placed(placed)
            if job is not None:
                quantised.add(placed.name)
            self.jobs.append(job or self._copy(placed.key, placed.dtype))
        for group in structure.groups.values():
            jobs = self._of_group(group)
            if jobs is not None:
                quantised.add(group.first)
            self.jobs += jobs or [self._copy(key, dtype) for key, _, dtype in group.keys]
        tied: dict[str, str] = getattr(structure.model, "all_tied_weights_keys", None) or {}
        for one, other in tied.items():  # only one of two tied weights is stored
            if {one, other} <= self._weights.keys() and {one, other} & quantised:
                quantised |= {one, other}
        wholes = (n for n in wanted if all(f"{n}.{w}" in quantised for w in _weights(modules[n])))
        self.int8 = tuple(wholes)

    def _copy(self, key: str, dtype: Any) -> Copy:
        return Copy(key, Output(key, dtype, self._source.tensors[key].shape))

    def _of_placed(self, placed: Placed) -> Job | None:
        module = self._weights.get(placed.name)
        if module is None:
            return None
        shape = self._source.tensors[placed.key].shape
        if is_experts(module):
            scales = self._structure.scales_of_experts(placed.key, placed.name)
            if scales is None:
                return None
            return QuantizeExperts(placed.key, scales, placed.dtype, shape, bool(module.is_transposed))
        name = placed.name.removesuffix(".weight")
        columns = self._columns.get(name)
        suffixes = self._format.suffixes + (() if columns is None else self._format.second_digit)
        layer = self._structure.stored_name(placed.key, name, suffixes)
        if layer is None:
            return None
        transposed = is_conv1d(module)
        rows, features = reversed(shape) if transposed else shape
        shape = (rows, features)
        return Quantize(placed.key, layer, placed.dtype, shape, transposed, self._format, columns=columns)

    def _of_group(self, group: Group) -> list[Job] | None:
        """Experts that are stored one by one are quantised one by one, if their scales are stacked alike."""
        module = self._weights.get(group.first)
        if module is None or not is_experts(module) or module.is_transposed:
            return None
        if not all(
            self._structure.scales_follow(key, pattern, group.first) for key, pattern, _ in group.keys
        ):
            return None
        jobs: list[Job] = []
        for key, _, dtype in group.keys:
            rows, features = self._source.tensors[key].shape
            layer = key.removesuffix(".weight")
            jobs.append(
                Quantize(key, layer, dtype, (rows, features), False, self._format, (".weight", ".SCB"))
            )
        return jobs


def _weights(module: nn.Module) -> tuple[str, ...]:
    return ("weight",) if is_linear(module) or not is_experts(module) else expert_weights(module)
