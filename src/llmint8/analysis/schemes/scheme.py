"""What a scheme is: a name, a source, a known fault, and the linear layer that it would compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A float linear layer. name: in its model. weight: float `[N, K]`, any strides. bias: float `[N]`."""

    name: str
    weight: Tensor
    bias: Tensor | None


class Scheme(ABC):
    """A way to compute a linear layer in 8 bits, emulated: same values as its integers would give.

    Fake-quantised schemes multiply de-quantised values in float32, so they leave out what an implementation
    rounds on top of its scheme. They keep no state, and quantise the weight anew at each call: all together
    need the memory of one layer.

    name: what a user writes. title: what a table shows. source: where it is described. fault: what it gets
    wrong.
    """

    name: str
    title: str
    source: str
    fault: str

    @abstractmethod
    def linear(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """The layer's output for all rows of a batch.

        x: float16, bfloat16 or float32 `[T, K]`, finite; never modified.

        Returns y float `[T, N]`, to be rounded to the dtype of x, and what was not reduced to 8 bits: bool
        `[T, K]` for single values, `[1, K]` for whole columns of the batch, or None for nothing.
        """

    def stored_bytes(self, layer: Layer, kept_columns: int) -> int:
        """Bytes of the stored weight: int8 codes and a float32 scale for each output feature.

        kept_columns: input features of which a value was kept at 16 bits anywhere in the text.
        """
        del kept_columns
        return layer.weight.numel() + layer.weight.shape[0] * SCALE_BYTES


#: Bytes of a scale, and of a zero-point, which is stored beside it; of a 16-bit weight.
SCALE_BYTES = 4
HALF_BYTES = 2


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + bias` in float32: `[T, K]`, `[N, K]`, `[N]` of any float type to `[T, N]`."""
    y = x.float() @ weight.float().T
    return y if bias is None else y + bias.float()
