"""Convert a model in memory: every linear layer to `Int8Linear`, module by module, and say what was done."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from llmint8.config import Int8Config
from llmint8.errors import QuantizationError
from llmint8.nn import Int8Linear
from llmint8.convert.plan import Plan, check_skip_modules, is_conv1d, plan_conversion
from llmint8.convert.report import ConversionReport, Row

M = TypeVar("M", bound=nn.Module)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the module `name` ("model.layers.0.mlp.up_proj") is, under all its names."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, module in parent.named_children():
            if module is old:
                setattr(parent, child, new)


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def quantize_model(
    model: nn.Module,
    config: Int8Config | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Convert a model to int8 in place, one module at a time (peak memory: the model plus one layer).

    model: any module; every `nn.Linear` and transformers `Conv1D` in it becomes an `Int8Linear`, except the
        output head and whatever shares a weight with another module, and `config.skip_modules`. Hooks and
        subclasses of `nn.Linear` are left alone, and the report says so.
    config: `Int8Config()` when None.
    progress: called with (modules done, modules in all) after each module.

    Returns the report: what was converted, what was skipped and why, bytes before and after.
    Raises QuantizationError if the model is int8 already, is itself a bare linear layer, holds a non-finite
    weight (checked before anything is changed), or has weights without data; ConfigError for a skip pattern
    that matches nothing.
    """
    config = config or Int8Config()
    check_skip_modules(model, config.skip_modules)
    plan = plan_conversion(model, config.skip_modules)
    _check_convertible(model, plan)
    before = _bytes(model)
    rows = list(plan.skipped)
    for done, name in enumerate(plan.convert, 1):
        source = model.get_submodule(name)
        new = _convert(source, config, f"{name}.weight")
        rows.append(Row(name, type(source).__name__, "int8", _bytes(source), _bytes(new)))
        replace_module(model, name, new)
        del source
        if progress is not None:
            progress(done, len(plan.convert))
    gc.collect()
    if hasattr(model, "save_pretrained") and hasattr(model, "config"):
        model.config.quantization_config = config  # so that what transformers saves, transformers can load
    return ConversionReport(tuple(sorted(rows, key=lambda r: plan.order[r.name])), before, _bytes(model))


def _check_convertible(model: nn.Module, plan: Plan) -> None:
    if any(isinstance(m, Int8Linear) for m in model.modules()):
        raise QuantizationError("the model is int8 already: load the float checkpoint to convert it again")
    if "" in plan.convert:
        raise QuantizationError("the model is a single linear layer: use Int8Linear.from_linear(linear)")
    if not plan.convert:
        reasons = sorted({row.decision for row in plan.skipped}) or ["it has no linear layer"]
        raise QuantizationError(f"nothing to convert: {'; '.join(reasons)}")
    for name in plan.convert:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        if weight.is_meta:
            raise QuantizationError(f"{name}.weight has no data (meta device): load the weights first")
        if not all(bool(torch.isfinite(block).all()) for block in weight.detach().split(1024)):
            raise QuantizationError(
                f"{name}.weight: holds a NaN or an infinity, which no scale can represent; "
                "repair the weight, or add the module to skip_modules"
            )


def _convert(source: nn.Module, config: Int8Config, name: str) -> Int8Linear:
    if isinstance(source, nn.Linear):
        return Int8Linear.from_linear(source, config.threshold, name)
    assert is_conv1d(source)
    weight, bias = source.weight, source.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, nn.Parameter)
    return Int8Linear.from_weight(weight.T, bias, config.threshold, name).train(source.training)


def dequantize_model(model: M, dtype: torch.dtype = torch.float32) -> M:
    """Replace every `Int8Linear` by an `nn.Linear` with the de-quantised weight, in place; return the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8Linear):
            replace_module(model, name, module.to_linear(dtype))
    if hasattr(getattr(model, "config", None), "quantization_config"):
        del model.config.quantization_config
    return model
