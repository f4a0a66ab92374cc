"""`input_gradient(grad, weight, absmax, outlier_cols, weight_low) -> grad_x`: `dY · W` of an int8 linear.

grad: float16, bfloat16 or float32 `[..., N]`. weight: int8 `[N, K]`. absmax: float32 `[N]`.
outlier_cols, weight_low: int32 `[P]` and int8 `[N, P]`, the second weight digit of a few columns, or None.
grad_x: `[..., K]` in the dtype of grad; products and sums are float32.

The weight is de-quantised block by block: as floats it never exists whole. CPU kernels add in ascending
order of the output features, as the reference does; elsewhere torch's matrix product adds in its own order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.ops.library import define

#: Rows of the weight that exist as floats at a time.
_ROWS = 1024


def matmul_input_gradient(
    grad: Tensor,
    weight: Tensor,
    absmax: Tensor,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """The default implementation, on any device: by torch's matrix product."""
    total = grad.new_zeros((*grad.shape[:-1], weight.shape[1]), dtype=torch.float32)
    for start in range(0, weight.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        low = None if weight_low is None else weight_low[rows]
        block = reference.dequantize_weight(weight[rows], absmax[rows], torch.float32, outlier_cols, low)
        total += grad[..., rows].float() @ block
    return total.to(grad.dtype)


def _fake(
    grad: Tensor,
    weight: Tensor,
    absmax: Tensor,  # noqa: ARG001 - the schema's arguments
    outlier_cols: Tensor | None = None,  # noqa: ARG001
    weight_low: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


input_gradient = define(
    "input_gradient",
    "(Tensor grad, Tensor weight, Tensor absmax, Tensor? outlier_cols=None, Tensor? weight_low=None)"
    " -> Tensor",
    matmul_input_gradient,
    _fake,
)
