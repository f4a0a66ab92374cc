"""An embedding that trains well under 8-bit optimizers (arXiv 2110.02861, section 2.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmint8.optim.base import KEEP_32_BITS


class StableEmbedding(nn.Embedding):
    """`nn.Embedding` with Xavier initialisation, a layer norm on its output, and optimizer state in 32 bits.

    Arguments: those of `nn.Embedding`. ids `[...]` to float `[..., embedding_dim]`. The rows of frequent and
    rare tokens have gradients of very different sizes, which one scale per block serves badly; so this
    weight's state keeps 32 bits in every optimizer of `llmint8.optim`. Code that replaces the parameter
    (FSDP2) loses that mark: call `optimizer.override(embedding, optim_bits=32)` there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm = nn.LayerNorm(self.embedding_dim, device=self.weight.device)
        setattr(self.weight, KEEP_32_BITS, True)

    def reset_parameters(self) -> None:
        """Xavier's uniform initialisation; the padding row is zero."""
        nn.init.xavier_uniform_(self.weight)
        self._fill_padding_idx_with_zero()

    def forward(self, input: Tensor) -> Tensor:
        """Look up and normalise in the norm's dtype; returns the weight's dtype."""
        rows = super().forward(input).to(torch.get_default_dtype())
        normed: Tensor = self.norm(rows)
        return normed.to(self.weight.dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        setattr(self.weight, KEEP_32_BITS, True)  # deepcopy and pickle keep no attributes of a parameter
