"""The meaning of every operation, in plain torch: readable, slow, and what all kernels must equal."""

from llmint8.reference.matmul import combine, int8_product, linear
from llmint8.reference.outliers import outlier_mask
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
    "combine",
    "dequantize_weight",
    "int8_product",
    "linear",
    "outlier_mask",
    "quantize_low_digit",
    "quantize_rows",
    "quantize_weight",
    "split_digits",
    "weight_absmax",
    "weight_codes",
    "weight_scale",
]
