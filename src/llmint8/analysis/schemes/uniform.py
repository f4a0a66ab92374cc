"""Every value in 8 bits: the rows of the paper's Table 1 without decomposition, the float model, and weights
alone."""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8.analysis.schemes.rounding import Rounding, absmax
from llmint8.analysis.schemes.scheme import SCALE_BYTES, Layer, Scheme, product

PAPER = "Dettmers et al., LLM.int8(), arXiv 2208.07339"


class Float(Scheme):
    """The model as it is."""

    name = "float"
    title = "float"
    source = "the model"
    fault = "none: the others are compared with it"

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """All values are kept."""
        weight = layer.weight.to(x.dtype)
        y = torch.nn.functional.linear(x, weight, None if layer.bias is None else layer.bias.to(x.dtype))
        return y, torch.ones((1, x.shape[1]), dtype=torch.bool, device=x.device)

    def stored_bytes(self, layer: Layer, kept_columns: int) -> int:
        """The weight as it is in memory."""
        del kept_columns
        return layer.weight.numel() * layer.weight.element_size()


class WeightOnly(Scheme):
    """int8 weights, one scale for each output feature; activations are not quantised."""

    name = "weight-only"
    title = "weight-only int8"
    source = "absmax, section 3.1 of arXiv 2208.07339, on the weights alone"
    fault = "saves memory, but the products run in floats: no faster arithmetic than 16 bits"

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """All activations are kept."""
        y = product(x, absmax(layer.weight.float(), True), layer.bias)
        return y, torch.ones((1, x.shape[1]), dtype=torch.bool, device=x.device)


class Uniform(Scheme):
    """int8 weights and activations, without outliers.

    rounding: absmax or zero-point. by_token: whether each row of the activations has a range of its own.
    by_output: whether each output feature of the weight has one.
    """

    source = f"{PAPER}, Table 1 and section 3.1"

    def __init__(
        self, name: str, title: str, fault: str, rounding: Rounding, by_token: bool, by_output: bool
    ) -> None:
        self.name, self.title, self.fault = name, title, fault
        self._rounding, self._by_token, self._by_output = rounding, by_token, by_output

    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Nothing is kept."""
        values = self._rounding(x.float(), self._by_token)
        weight = self._rounding(layer.weight.float(), self._by_output)
        return product(values, weight, layer.bias), None

    def stored_bytes(self, layer: Layer, kept_columns: int) -> int:
        """Codes and scales, and zero-points where there are any."""
        del kept_columns
        return layer.weight.numel() + range_bytes(layer, self._rounding, self._by_output)


def range_bytes(layer: Layer, rounding: Rounding, by_output: bool) -> int:
    """Bytes of the scales of a weight, and of its zero-points where there are any."""
    ranges = layer.weight.shape[0] if by_output else 1
    return ranges * SCALE_BYTES * (1 if rounding is absmax else 2)
