"""Conversion of a model in memory: the plan (what becomes int8), the work, and the report."""

from llmint8.convert.conversions import keep_saving_scales, with_scales
from llmint8.convert.empty import empty_like, is_convertible, is_linear
from llmint8.convert.fourbit import quantize_model_4bit
from llmint8.convert.model import (
    dequantize_model,
    module_bytes,
    quantize_model,
    replace_modules,
)
from llmint8.convert.outlier_columns import default_calibration_ids, find_outlier_columns
from llmint8.convert.plan import (
    Plan,
    check_module_thresholds,
    check_skip_modules,
    convertible_weights,
    plan_conversion,
)
from llmint8.convert.report import ConversionReport, Row, human_bytes
from llmint8.convert.thresholds import set_threshold
from llmint8.convert.ties import tie_companions

__all__ = [
    "ConversionReport",
    "Plan",
    "Row",
    "check_module_thresholds",
    "check_skip_modules",
    "convertible_weights",
    "default_calibration_ids",
    "dequantize_model",
    "empty_like",
    "find_outlier_columns",
    "human_bytes",
    "is_convertible",
    "is_linear",
    "keep_saving_scales",
    "module_bytes",
    "plan_conversion",
    "quantize_model",
    "quantize_model_4bit",
    "replace_modules",
    "set_threshold",
    "tie_companions",
    "with_scales",
]
