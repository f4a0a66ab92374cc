"""The short way to a kernel: a plain Python call where torch's dispatcher would decide nothing.

A decoder calls hundreds of linear layers for one token. At one row the dispatcher, its autograd key and the
operator's Python wrappers cost more than a small layer's arithmetic. Whatever watches or transforms operators
(autograd, compilation, tracing, tensor subclasses, modes, functorch) still sees the operator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmint8.ops.linear import linear

LinearKernel = Callable[
    [Tensor, Tensor, Tensor, "Tensor | None", float, "Tensor | None", "Tensor | None"], Tensor
]

#: Kernels that may be called past the dispatcher, by device type; backends put themselves here.
LINEAR_KERNELS: dict[str, LinearKernel] = {}
_PLAIN = (Tensor, nn.Parameter)


def nothing_watches() -> bool:
    """Whether no compilation, trace, mode or transform of torch looks at what is called."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or torch._C._functorch.peek_interpreter_stack()
    )


def _plain_on_cpu(tensor: Tensor | None) -> bool:
    return tensor is None or (type(tensor) in _PLAIN and tensor.is_cpu)


def _plain_on_gpu(tensor: Tensor | None) -> bool:
    return tensor is None or (type(tensor) in _PLAIN and tensor.is_cuda)


def call_linear(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    threshold: float,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """`ops.linear` with the same arguments, result and errors, by the shortest way that is right."""
    device, is_plain = ("cpu", _plain_on_cpu) if x.is_cpu else ("cuda", _plain_on_gpu)
    kernel = LINEAR_KERNELS.get(device)
    if (
        kernel is None
        or not nothing_watches()
        or not (is_plain(x) and is_plain(weight) and is_plain(absmax) and is_plain(bias))
        or not (is_plain(outlier_cols) and is_plain(weight_low))
        or (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
    ):
        output: Tensor = linear(x, weight, absmax, bias, threshold, outlier_cols, weight_low)
        return output
    return kernel(x, weight, absmax, bias, threshold, outlier_cols, weight_low)
