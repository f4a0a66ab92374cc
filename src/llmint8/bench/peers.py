"""The same layer in other libraries, where they are installed. They are imported here and nowhere else."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmint8.numerics import DEFAULT_THRESHOLD


def _bitsandbytes(weight: Tensor) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it remarks on bfloat16 in every call
    n, k = weight.shape
    layer: nn.Module = Linear8bitLt(
        k, n, bias=False, has_fp16_weights=False, threshold=DEFAULT_THRESHOLD, device="meta"
    )
    # Moving the parameter is what quantises it there.
    layer.weight = Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False).to(weight.device)
    return layer.eval()


def _torchao(weight: Tensor) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    n, k = weight.shape
    layer = nn.Linear(k, n, bias=False, dtype=torch.bfloat16, device="meta")
    layer.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    return layer.eval()


_PEERS: dict[str, tuple[str, Callable[[Tensor], nn.Module]]] = {
    "bitsandbytes": ("bitsandbytes", _bitsandbytes),
    "torchao": ("torchao", _torchao),
}


def installed() -> list[str]:
    """The libraries that can be compared with here."""
    return [name for name, (package, _) in _PEERS.items() if importlib.util.find_spec(package)]


def build(name: str, weight: Tensor, count: int) -> list[nn.Module]:
    """`count` equal layers of a library with weights of their own. weight: float32 `[N, K]`; they lie on its
    device.

    Raises whatever that library raises.
    """
    first = _PEERS[name][1](weight)
    first(
        torch.zeros(1, weight.shape[1], dtype=torch.bfloat16, device=weight.device)
    )  # what is set up at a first call
    return [first, *(copy.deepcopy(first) for _ in range(count - 1))]
