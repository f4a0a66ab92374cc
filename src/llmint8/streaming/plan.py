"""What a conversion writes, decided before the first byte: jobs, files, configuration and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llmint8.config import Int8Config
from llmint8.convert import (
    ConversionReport,
    Row,
    check_skip_modules,
    is_linear,
    module_bytes,
    plan_conversion,
)
from llmint8.errors import QuantizationError
from llmint8.nn import is_conv1d, weight_as_linear
from llmint8.streaming.formats import Llmint8
from llmint8.streaming.jobs import Copy, Job, Quantize
from llmint8.streaming.shard import Layout, Output
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
    source: Source, structure: Structure, config: Int8Config, form: Llmint8, shard_bytes: int
) -> StreamPlan:
    """Decide by structure alone. shard_bytes: the size from which a file is closed.

    Raises ConfigError for a skip pattern that matches nothing or what the format cannot say,
    QuantizationError if no layer can become int8.
    """
    model = structure.model
    check_skip_modules(model, config.skip_modules)
    plan = plan_conversion(model, config.skip_modules)
    modules = dict(model.named_modules())
    by_rule = {name for name in form.float_by_rule(model) if name in plan.convert}
    wanted = [name for name in plan.convert if name not in by_rule]
    weights = {f"{name}.weight": name for name in wanted if is_linear(modules[name])}
    jobs: list[Job] = []
    rows = [*plan.skipped, *(_left_float(name, modules[name], _BY_RULE) for name in sorted(by_rule))]
    for placed in structure.placed:
        layer = weights.get(placed.name)
        stored = layer and structure.stored_name(placed.key, layer, form.suffixes)
        if not layer or not stored:
            shape = source.tensors[placed.key].shape
            jobs.append(Copy(placed.key, Output(placed.key, placed.dtype, shape)))
            continue
        module = modules[layer]
        count, features = weight_as_linear(module).shape
        job = Quantize(placed.key, stored, placed.dtype, (count, features), is_conv1d(module), form)
        before, bias = module_bytes(module), module.bias
        after = sum(o.nbytes for o in job.outputs) + (bias.nbytes if bias is not None else 0)
        jobs.append(job)
        rows.append(Row(layer, type(module).__name__, "int8", before, after))
    for group in structure.groups.values():
        for key, _, dtype in group.keys:
            jobs.append(Copy(key, Output(key, dtype, source.tensors[key].shape)))
    int8 = [row.name for row in rows if row.converted]
    left = [name for name in wanted if name not in set(int8)]
    rows += [_left_float(name, modules[name], _ASSEMBLED) for name in left]
    if not int8:
        reasons = sorted({row.decision for row in rows}) or ["it has no linear layer"]
        raise QuantizationError(f"nothing to convert: {'; '.join(reasons)}")
    if left:  # loading must not expect int8 where the file holds floats
        config = replace(config, skip_modules=(*(config.skip_modules or ()), *left))
    before = module_bytes(model)
    after = before + sum(row.bytes_after - row.bytes_before for row in rows)
    report = ConversionReport(tuple(sorted(rows, key=lambda r: plan.order[r.name])), before, after)
    quantization = form.config(config, model, int8)
    return StreamPlan(_shards(jobs, shard_bytes), quantization, structure.dtype, report)


def _left_float(name: str, module: torch.nn.Module, reason: str) -> Row:
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
