"""The gradient of the int8 linear layer on a CPU: the weight becomes floats a cache-sized block at a time."""

from __future__ import annotations

import math

from torch import Tensor

from llmint8 import ops
from llmint8.backends.native import DTYPES, Native, engine
from llmint8.ops.input_gradient import matmul_input_gradient
from llmint8.ops.library import implement


def run(
    native: Native,
    grad: Tensor,
    weight: Tensor,
    absmax: Tensor,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """`llmint8_input_gradient` on tensors that fit together, as those of a layer do."""
    n, k = weight.shape
    grad_x = grad.new_empty((*grad.shape[:-1], k))
    grad, weight, absmax = grad.contiguous(), weight.contiguous(), absmax.contiguous()
    columns, columns_address, low_address = 0, None, None
    if outlier_cols is not None and weight_low is not None:
        outlier_cols, weight_low = outlier_cols.contiguous(), weight_low.contiguous()
        columns = len(outlier_cols)
        columns_address, low_address = outlier_cols.data_ptr(), weight_low.data_ptr()
    native.call(
        "llmint8_input_gradient", DTYPES[grad.dtype], math.prod(grad.shape[:-1]), k, n,
        grad.data_ptr(), weight.data_ptr(), absmax.data_ptr(),
        columns, columns_address, low_address, grad_x.data_ptr(),
    )  # fmt: skip
    return grad_x


def _input_gradient(
    grad: Tensor,
    weight: Tensor,
    absmax: Tensor,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    native = engine()
    if native is None:
        return matmul_input_gradient(grad, weight, absmax, outlier_cols, weight_low)
    return run(native, grad, weight, absmax, outlier_cols, weight_low)


def register() -> None:
    """Make this the CPU implementation of the gradient."""
    implement(ops.input_gradient, _input_gradient, "CPU")
