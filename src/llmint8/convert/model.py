"""Convert a model in memory: linear layers to `Int8Linear`, module by module, and say what was done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from llmint8 import reference
from llmint8.config import Int8Config
from llmint8.convert.conversions import keep_saving_scales
from llmint8.convert.empty import int8_from
from llmint8.convert.outlier_columns import find_outlier_columns
from llmint8.convert.plan import (
    Plan,
    check_module_thresholds,
    check_skip_modules,
    convertible_weights,
    plan_conversion,
)
from llmint8.convert.report import ConversionReport, Row
from llmint8.convert.ties import tie_companions
from llmint8.errors import QuantizationError
from llmint8.nn import INT8_MODULES, QUANTIZED_MODULES, Int8Conv1D

M = TypeVar("M", bound=nn.Module)


def replace_modules(
    model: nn.Module, names: Iterable[str], build: Callable[[str, nn.Module], nn.Module]
) -> None:
    """Put `build(name, module)` where each named module is, under all its names, one module at a time."""
    slots: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for child, module in parent._modules.items():
            if module is not None:
                slots[id(module)].append((parent, child))
    for name in names:
        old = model.get_submodule(name)
        new = build(name, old)
        for parent, child in slots[id(old)]:
            setattr(parent, child, new)


def module_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def quantize_model(
    model: nn.Module,
    config: Int8Config | None = None,
    progress: Callable[[int, int], None] | None = None,
    calibration_ids: Tensor | None = None,
) -> ConversionReport:
    """Convert a model to int8 in place, one module at a time (peak memory: the model plus one layer).

    model: any module; every `nn.Linear` and transformers `Conv1D` in it becomes an `Int8Linear`, fused
        experts become `Int8Experts`, except the output head, whatever shares a weight with another module,
        and `config.skip_modules`; `config` can add the head and the embeddings. Layers with hooks and
        subclasses of `nn.Linear` are left alone, and the report says so.
    config: `Int8Config()` when None.
    progress: called with (modules done, modules in all) after each module.
    calibration_ids: int64 `[1, L]`, what the float model reads once to find the columns with 16-bit weights,
        if `config.outlier_weights` is "int16"; None for the end of a short English text that is shipped, by
        the tokenizer in the folder that the model was loaded from.

    Returns the report: what was converted, what was skipped and why, bytes before and after.
    Raises QuantizationError if the model is int8 already, is itself a bare linear layer, holds a non-finite
    weight (checked before anything is changed), or has weights without data; ConfigError for a pattern that
    matches nothing.
    """
    config = config or Int8Config()
    check_skip_modules(model, config.skip_modules)
    plan = plan_conversion(model, config.skip_modules, config)
    _check_convertible(model, plan)
    check_module_thresholds(model, config, plan.convert)
    columns = {}
    if config.outlier_weights == "int16":
        columns = find_outlier_columns(model, plan.convert, calibration_ids)
    before = module_bytes(model)
    rows = list(plan.skipped)

    shared: dict[int, nn.Parameter] = {}

    def convert(name: str, source: nn.Module) -> nn.Module:
        before, weight = module_bytes(source), getattr(source, "weight", None)
        new: Any = int8_from(source, config.threshold_of(name), name, columns.get(name))
        if weight is not None:  # a head tied to an embedding gets the embedding's codes
            new.weight = shared.setdefault(id(weight), new.weight)
        kept = len(columns.get(name, ()))
        rows.append(Row(name, type(source).__name__, "int8", before, module_bytes(new), kept))
        if progress is not None:
            progress(len(rows) - len(plan.skipped), len(plan.convert))
        return cast(nn.Module, new)

    replace_modules(model, plan.convert, convert)
    tie_companions(model, plan.convert)
    keep_saving_scales(model)
    saved = saved_config(model)
    if saved is not None:
        saved.quantization_config = config  # so that what transformers saves, transformers can load
    return ConversionReport(
        tuple(sorted(rows, key=lambda r: plan.order[r.name])), before, module_bytes(model)
    )


def _check_convertible(model: nn.Module, plan: Plan) -> None:
    if any(isinstance(m, INT8_MODULES) for m in model.modules()):
        raise QuantizationError("the model is int8 already: load the float checkpoint to convert it again")
    if "" in plan.convert:
        raise QuantizationError("the model is a single linear layer: use Int8Linear.from_linear(linear)")
    if not plan.convert:
        reasons = sorted({row.decision for row in plan.skipped}) or ["it has no linear layer"]
        raise QuantizationError(f"nothing to convert: {'; '.join(reasons)}")
    for name in plan.convert:
        for key, weight in convertible_weights(model.get_submodule(name)).items():
            for index, part in enumerate([weight] if weight.dim() == 2 else weight):
                which = f"{name}.{key}" if weight.dim() == 2 else f"{name}.{key}[{index}]"
                reference.weight_absmax(part.detach(), which)


def saved_config(model: nn.Module) -> Any:
    """The configuration that transformers writes beside the weights; None for another kind of model."""
    return getattr(model, "config", None) if hasattr(model, "save_pretrained") else None


def dequantize_model(model: M, dtype: torch.dtype | None = None) -> M:
    """Replace every int8 or 4-bit module by a float one, in place; return the model.

    dtype: of the new weights; None for that of the model's first float parameter. What was tied stays tied.
    """
    if dtype is None:
        floats = (p.dtype for p in model.parameters() if p.is_floating_point())
        dtype = next(floats, torch.float32)
    names = [name for name, module in model.named_modules() if isinstance(module, QUANTIZED_MODULES)]
    shared: dict[int, nn.Parameter] = {}

    def restore(_: str, module: nn.Module) -> nn.Module:
        new: Any = cast(Any, module).to_float_layer(dtype)
        codes = module._parameters.get("weight")
        if codes is not None and not isinstance(module, Int8Conv1D):
            new.weight = shared.setdefault(id(codes), new.weight)
        return cast(nn.Module, new)

    replace_modules(model, names, restore)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    elif hasattr(saved_config(model), "quantization_config"):
        del saved_config(model).quantization_config
    return model
