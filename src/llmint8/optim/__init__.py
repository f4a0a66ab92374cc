"""Optimizers whose state has 8 bits (Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, 2022).

`AdamW8bit(model.parameters(), lr=1e-4)` is `torch.optim.AdamW` with 2.03 bytes of state per parameter instead
of 8. `AdamW` is the same optimizer with its state in 32 bits, `PagedAdamW8bit` keeps its state in files.
"""

from llmint8.optim.adam import LAMB, Adam, AdamW, AdEMAMix
from llmint8.optim.embedding import StableEmbedding
from llmint8.optim.momentum import LARS, SGD, Lion
from llmint8.optim.squares import Adagrad, RMSprop
from llmint8.optim.variants import (
    Adagrad8bit,
    Adam8bit,
    AdamW8bit,
    AdEMAMix8bit,
    LAMB8bit,
    LARS8bit,
    Lion8bit,
    PagedAdam,
    PagedAdam8bit,
    PagedAdamW,
    PagedAdamW8bit,
    PagedAdEMAMix,
    PagedAdEMAMix8bit,
    PagedLion,
    PagedLion8bit,
    RMSprop8bit,
    SGD8bit,
)

__all__ = [
    "AdEMAMix",
    "AdEMAMix8bit",
    "Adagrad",
    "Adagrad8bit",
    "Adam",
    "Adam8bit",
    "AdamW",
    "AdamW8bit",
    "LAMB",
    "LAMB8bit",
    "LARS",
    "LARS8bit",
    "Lion",
    "Lion8bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix8bit",
    "PagedAdam",
    "PagedAdam8bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedLion",
    "PagedLion8bit",
    "RMSprop",
    "RMSprop8bit",
    "SGD",
    "SGD8bit",
    "StableEmbedding",
]
