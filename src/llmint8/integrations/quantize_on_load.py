"""The operation that transformers runs on each float weight as it reads it, so that it arrives in int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmint8 import reference
from llmint8.errors import QuantizationError
from llmint8.integrations.tensor_parallel import own_shape, quantize_part
from llmint8.nn import Int8Conv1D, Int8Embedding, Int8Experts, Int8Linear, experts_as_linear, quantize_experts
from llmint8.numerics import ROW_MAJOR


def is_codes(module: nn.Module, tensor: str) -> bool:
    """Whether the named tensor of a module holds int8 codes."""
    if isinstance(module, Int8Experts):
        return tensor in module.weights
    return isinstance(module, (Int8Linear, Int8Embedding)) and tensor == "weight"


class QuantizeOnLoad(ConversionOps):  # type: ignore[misc]
    """Turns float weights, as transformers reads them, into the tensors of int8 modules."""

    def __init__(self, errors: list[QuantizationError]) -> None:
        #: transformers catches what `convert` raises and shows a traceback; the quantizer raises this later.
        self._errors = errors

    def convert(self, input_dict: dict[str, Any], *, model: nn.Module, **_: Any) -> dict[str, Tensor]:
        """{"...weight": float} to {"...weight": codes, "...SCB": absmax, "...weight_format": 0}; experts'
        {"...down_proj": float} to {"...down_proj": codes, "...down_proj_SCB": absmax}."""
        tensors: dict[str, Tensor] = {}
        for key, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            module, kind = get_module_from_name(model, key)
            if not is_codes(module, kind):
                tensors[key] = tensor
                continue
            experts = isinstance(module, Int8Experts)
            scales = f"{key}_SCB" if experts else key.removesuffix("weight") + "SCB"
            tensors[key], tensors[scales] = self._quantize(tensor, module, key)
            if not experts:
                name = key.removesuffix("weight") + "weight_format"
                tensors[name] = torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=tensors[key].device)
        return tensors

    def _quantize(self, tensor: Tensor, module: Any, key: str) -> tuple[Tensor, Tensor]:
        try:
            if isinstance(module, Int8Experts):
                return quantize_experts(experts_as_linear(module, tensor), key)
            if isinstance(module, Int8Linear):
                return quantize_part(tensor.T if isinstance(module, Int8Conv1D) else tensor, module, key)
            return reference.quantize_weight(tensor, key)
        except QuantizationError as error:
            self._errors.append(error)
            codes = getattr(module, key.rpartition(".")[2])
            shape = own_shape(codes)
            return torch.zeros(shape, dtype=torch.int8), torch.zeros(shape[:-1])
