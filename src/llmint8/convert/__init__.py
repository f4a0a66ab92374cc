"""Conversion of a model in memory: the plan (what becomes int8), the work, and the report."""

from llmint8.convert.empty import empty_like
from llmint8.convert.model import (
    dequantize_model,
    module_bytes,
    quantize_model,
    replace_modules,
    set_threshold,
)
from llmint8.convert.plan import Plan, check_skip_modules, is_linear, plan_conversion
from llmint8.convert.report import ConversionReport, Row, human_bytes

__all__ = [
    "ConversionReport",
    "Plan",
    "Row",
    "check_skip_modules",
    "dequantize_model",
    "empty_like",
    "human_bytes",
    "is_linear",
    "module_bytes",
    "plan_conversion",
    "quantize_model",
    "replace_modules",
    "set_threshold",
]
