"""Convert a model in memory to 4-bit weights, as the base of adapters (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from llmint8.convert.model import module_bytes, replace_modules, saved_config
from llmint8.convert.plan import check_skip_modules, plan_conversion
from llmint8.convert.report import ConversionReport, Row
from llmint8.errors import QuantizationError
from llmint8.nn import QUANTIZED_MODULES, Linear4bit


def quantize_model_4bit(
    model: nn.Module,
    quant_type: str = "nf4",
    double_quant: bool = True,
    skip_modules: Iterable[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Convert the `nn.Linear` layers of a model to `Linear4bit` in place, one at a time.

    The output head, layers that share a weight, and layers with hooks stay as they are.

    quant_type: "nf4" or "fp4". double_quant: whether the scales get 8 bits too. skip_modules: names of
    modules that stay as they are, as in `Int8Config`. progress: called with (modules done, modules in all).

    Returns the report: what was converted, what was skipped and why, bytes before and after.
    Raises QuantizationError if the model is quantised already, has nothing to convert, or a weight without
    codes; ConfigError for a name that matches nothing.
    """
    if any(isinstance(module, QUANTIZED_MODULES) for module in model.modules()):
        raise QuantizationError(
            "the model is quantised already: load the float checkpoint to convert it again"
        )
    skip = None if skip_modules is None else tuple(skip_modules)
    check_skip_modules(model, skip)
    plan = plan_conversion(model, skip)
    names = [name for name in plan.convert if name and type(model.get_submodule(name)) is nn.Linear]
    if not names:
        raise QuantizationError("nothing to convert: the model has no nn.Linear that may change")
    before = module_bytes(model)
    rows = list(plan.skipped)
    for name in set(plan.convert) - set(names):
        module = model.get_submodule(name)
        size = module_bytes(module)
        rows.append(Row(name, type(module).__name__, "no nn.Linear", size, size))
    made: dict[str, Linear4bit] = {}
    # All before any is put in its place: a weight without codes leaves the model as it was.
    for name in names:
        linear: Any = model.get_submodule(name)
        try:
            made[name] = Linear4bit.from_linear(linear, quant_type, double_quant)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error
        rows.append(Row(name, "Linear", "4-bit", module_bytes(linear), module_bytes(made[name])))
        if progress is not None:
            progress(len(made), len(names))
    replace_modules(model, names, lambda name, _: made[name])
    saved = saved_config(model)
    if saved is not None:
        saved.quantization_config = _as_bitsandbytes(model, quant_type, double_quant)
    return ConversionReport(
        tuple(sorted(rows, key=lambda row: plan.order[row.name])), before, module_bytes(model)
    )


def _as_bitsandbytes(model: nn.Module, quant_type: str, double_quant: bool) -> dict[str, Any]:
    """What `save_pretrained` writes, so that a reader makes the same layers, as `BitsAndBytesConfig` does."""
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    floats = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, Linear4bit)
    ]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": double_quant,
        "bnb_4bit_compute_dtype": str(layers[0].weight_dtype).removeprefix("torch."),
        # By name, since a list replaces what readers keep as floats by themselves.
        "llm_int8_skip_modules": floats,
    }
