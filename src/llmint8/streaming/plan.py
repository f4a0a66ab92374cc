"""What a conversion writes, decided before the first byte: jobs, files, configuration and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmint8.config import Int8Config
from llmint8.convert import (
    ConversionReport,
    Row,
    check_module_thresholds,
    check_skip_modules,
    empty_like,
    module_bytes,
    plan_conversion,
    replace_modules,
)
from llmint8.errors import QuantizationError
from llmint8.streaming.assign import Assignment
from llmint8.streaming.formats import Llmint8
from llmint8.streaming.jobs import Job
from llmint8.streaming.shard import Layout
from llmint8.streaming.source import Source
from llmint8.streaming.structure import Structure

#: Why a layer stays float though it could be int8.
_ASSEMBLED = "transformers assembles its weight from others while it loads"
_BY_RULE = "readers of the format expect it as floats"


@dataclass(frozen=True)
class Shard:
    """One file of the result: its name, the jobs that fill it, and where their tensors lie."""

    name: str
    jobs: tuple[Job, ...]
    layout: Layout


@dataclass(frozen=True)
class StreamPlan:
    """shards: the files. quantization: for config.json. dtype: of what stays float. report: for people."""

    shards: tuple[Shard, ...]
    quantization: dict[str, Any]
    dtype: torch.dtype
    report: ConversionReport

    def index(self) -> dict[str, Any] | None:
        """The index of the shards; None for a single one, which needs none."""
        if len(self.shards) == 1:
            return None
        placed = {output.key: s.name for s in self.shards for job in s.jobs for output in job.outputs}
        total = sum(output.nbytes for s in self.shards for job in s.jobs for output in job.outputs)
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}


def plan_stream(
    source: Source,
    structure: Structure,
    config: Int8Config,
    form: Llmint8,
    shard_bytes: int,
    columns: Mapping[str, Tensor],
) -> StreamPlan:
    """Decide by structure alone.

    shard_bytes: the size from which a file is closed. columns: those with a second weight digit, by module.

    Raises ConfigError for a pattern that matches nothing or what the format cannot say,
    QuantizationError if no layer can become int8.
    """
    model = structure.model
    check_skip_modules(model, config.skip_modules)
    plan = plan_conversion(model, config.skip_modules, config)
    by_rule = set(form.float_by_rule(model)) & set(plan.convert)
    wanted = [name for name in plan.convert if name not in by_rule]
    assigned = Assignment(source, structure, form, wanted, columns)
    left = set(wanted) - set(assigned.int8)
    modules = dict(model.named_modules())
    rows = list(plan.skipped)
    rows += [_left_float(name, modules[name], _BY_RULE) for name in by_rule]
    rows += [_left_float(name, modules[name], _ASSEMBLED) for name in left]
    if not assigned.int8:
        reasons = sorted({row.decision for row in rows}) or ["it has no linear layer"]
        raise QuantizationError(f"nothing to convert: {'; '.join(reasons)}")
    check_module_thresholds(model, config, assigned.int8)
    if left:  # loading must not expect int8 where the file holds floats
        config = replace(config, skip_modules=(*(config.skip_modules or ()), *sorted(left)))
    quantization = form.config(config, model, assigned.int8)
    before = module_bytes(model)
    rows += _to_int8(model, assigned.int8, config, columns)
    rows.sort(key=lambda row: plan.order[row.name])
    report = ConversionReport(tuple(rows), before, module_bytes(model))
    return StreamPlan(_shards(assigned.jobs, shard_bytes), quantization, structure.dtype, report)


def _to_int8(
    model: nn.Module, names: Sequence[str], config: Int8Config, columns: Mapping[str, Tensor]
) -> list[Row]:
    """Put int8 modules without data where `names` are, to count their bytes; the rows of the report."""
    first: dict[int, Any] = {}
    rows = []

    def build(name: str, source: nn.Module) -> nn.Module:
        kept = len(columns.get(name, ()))
        new: Any = empty_like(source, config.threshold, kept)
        weight = getattr(source, "weight", None)
        if weight is not None:  # a head tied to an embedding shares its codes and scales
            owner = first.setdefault(id(weight), new)
            new.weight, new.SCB, new.weight_format = owner.weight, owner.SCB, owner.weight_format
        before, after = module_bytes(source), module_bytes(new)
        rows.append(Row(name, type(source).__name__, "int8", before, after, kept))
        return cast(nn.Module, new)

    replace_modules(model, names, build)
    return rows


def _left_float(name: str, module: nn.Module, reason: str) -> Row:
    size = module_bytes(module)
    return Row(name, type(module).__name__, reason, size, size)


def _shards(jobs: Sequence[Job], limit: int) -> tuple[Shard, ...]:
    """Fill files in order, each up to `limit` bytes; a job larger than that has a file of its own."""
    filled: list[list[Job]] = []
    room = 0
    for job in jobs:
        size = sum(output.nbytes for output in job.outputs)
        if not filled or size > room:
            filled.append([])
            room = limit
        filled[-1].append(job)
        room -= size
    total = len(filled)
    names = [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    if total == 1:
        names = ["model.safetensors"]
    layouts = [Layout([output for job in part for output in job.outputs]) for part in filled]
    parts = zip(names, filled, layouts, strict=True)
    return tuple(Shard(name, tuple(part), layout) for name, part, layout in parts)
