"""The meaning of every operation, in plain torch: readable, slow, and what all kernels must equal."""

from llmint8.reference.blockwise import dequantize_blockwise, dynamic_code_book, quantize_blockwise
from llmint8.reference.fourbit import (
    NestedScales,
    code_book,
    dequantize_4bit,
    dequantize_scales,
    linear_4bit,
    quantize_4bit,
    quantize_scales,
)
from llmint8.reference.gradient import input_gradient
from llmint8.reference.matmul import combine, int8_product, linear
from llmint8.reference.optimizers import optimizer_norms, optimizer_step
from llmint8.reference.outliers import outlier_columns, outlier_mask
from llmint8.reference.rowwise import (
    dequantize_weight,
    quantize_low_digit,
    quantize_rows,
    quantize_weight,
    split_digits,
    weight_absmax,
    weight_codes,
    weight_scale,
)

__all__ = [
    "NestedScales",
    "code_book",
    "combine",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_scales",
    "dequantize_weight",
    "dynamic_code_book",
    "input_gradient",
    "int8_product",
    "linear",
    "linear_4bit",
    "optimizer_norms",
    "optimizer_step",
    "outlier_columns",
    "outlier_mask",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_low_digit",
    "quantize_rows",
    "quantize_scales",
    "quantize_weight",
    "split_digits",
    "weight_absmax",
    "weight_codes",
    "weight_scale",
]
