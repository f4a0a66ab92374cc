"""`Int8Embedding`: a table of vectors in int8, one scale per vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import memory, reference
from llmint8.nn.casting import keeping
from llmint8.nn.linear import invalid_tensors
from llmint8.numerics import ROW_MAJOR


def is_embedding(module: nn.Module) -> bool:
    """Whether `Int8Embedding` can stand in for this: an `nn.Embedding` itself that only looks up."""
    return type(module) is nn.Embedding and module.max_norm is None and not module.sparse


class Int8Embedding(nn.Module):
    """Looks up row i as `weight[i] · SCB[i] / 127`, computed in float32 and rounded to `dtype`.

    State, as that of `Int8Linear`: `weight` int8 `[V, D]` (a Parameter without gradient), `SCB` float32
    `[V]`, `weight_format` uint8 (0, row-major). A head that is tied to the embedding shares all three.
    It is no `nn.Embedding`, since its table cannot be resized or trained: code that does so must not take it
    for one.

    dtype: of the output; a cast of the module (`.half()`) sets it.
    """

    SCB: Tensor
    weight_format: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.dtype = dtype
        codes = memory.zeros((num_embeddings, embedding_dim), device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("SCB", torch.zeros(num_embeddings, dtype=torch.float32, device=device))
        self.register_buffer("weight_format", torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=device))

    @classmethod
    def empty_like(cls, embedding: nn.Embedding) -> Int8Embedding:
        """The int8 form of an embedding on the meta device."""
        size, dim = embedding.weight.shape
        new = cls(size, dim, embedding.padding_idx, "meta", embedding.weight.dtype)
        return new.train(embedding.training)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, name: str = "weight") -> Int8Embedding:
        """Quantise an `nn.Embedding`; it is not modified. name: what an error calls the weight.

        Raises QuantizationError for a non-finite weight.
        """
        new = cls.empty_like(embedding)
        codes, absmax = reference.quantize_weight(embedding.weight.detach(), name)
        new.weight = nn.Parameter(codes, requires_grad=False)
        new.SCB = absmax
        new.weight_format = torch.tensor(ROW_MAJOR, dtype=torch.uint8, device=codes.device)
        return new

    def forward(self, input: Tensor) -> Tensor:
        """int64 or int32 `[...]` to `[..., D]` in `dtype`."""
        index = input.flatten()
        rows = reference.dequantize_weight(self.weight[index], self.SCB[index], self.dtype)
        return rows.view(*input.shape, self.embedding_dim)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The table as floats, `[V, D]`."""
        return reference.dequantize_weight(self.weight, self.SCB, dtype)

    def to_float_layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """An `nn.Embedding` with the de-quantised table."""
        embedding = nn.Embedding(
            self.num_embeddings, self.embedding_dim, padding_idx=self.padding_idx, device="meta"
        )
        embedding.weight = nn.Parameter(self.dequantize(dtype))
        return embedding.train(self.training)

    def tensors(self) -> dict[str, Tensor]:
        """Codes and scales by name."""
        return {"weight": self.weight, "SCB": self.SCB}

    def invalid_state(self) -> str | None:
        """Why the tensors of this module cannot be an int8 embedding, or None."""
        return invalid_tensors(self.weight, self.SCB, self.weight_format)

    def extra_repr(self) -> str:
        """The arguments that matter, for `print(model)`."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, dtype={self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Embedding:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        super()._apply(keeping(fn, self.SCB), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        weight, scb = state_dict.get(prefix + "weight"), state_dict.get(prefix + "SCB")
        reason = None
        if (weight is None) != (scb is None):
            reason = "weight and SCB mean nothing without each other, and one is missing"
        elif weight is not None and scb is not None:
            reason = invalid_tensors(weight, scb, state_dict.get(prefix + "weight_format"))
        if reason is not None:
            args[4].append(prefix + reason)
            return  # nothing of a table that cannot be right is taken over
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
