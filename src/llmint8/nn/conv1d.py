"""transformers' `Conv1D`: a linear layer of GPT-2 and its kin that stores its weight the other way round."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from llmint8.nn.linear import Int8Linear


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`, with weight `[K, N]`; told by its name, so that transformers
    need not be imported."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def weight_as_linear(module: nn.Module) -> Tensor:
    """The weight of an `nn.Linear` or a `Conv1D` as `[N, K]`, a view."""
    weight = cast(Tensor, module.weight)
    return weight.T if is_conv1d(module) else weight


class Int8Conv1D(Int8Linear):
    """An `Int8Linear` made from a `Conv1D`: the same layer, which turns back into what its model expects."""

    def to_float_layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A `Conv1D` with the de-quantised weight, `[K, N]`; it shares the bias."""
        from transformers.pytorch_utils import Conv1D  # loaded already: this module was made from one

        with torch.device("meta"):
            layer: nn.Module = Conv1D(self.out_features, self.in_features)
        layer.weight = nn.Parameter(self.dequantize(dtype).T.contiguous())
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)
