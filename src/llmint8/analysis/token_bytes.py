"""How many bytes of a text each token stands for: likelihoods per byte do not depend on the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def token_bytes(text: str, offsets: Iterable[tuple[int, int]]) -> Tensor:
    """Bytes of UTF-8 by token, int64 `[T]`.

    offsets: the characters of each token, start and end, as tokenizers return them (their
        `return_offsets_mapping`).

    A token stands for everything from the end of the tokens before it, as tokenizers leave blanks out of
    offsets. Where several tokens share a character, the first has its bytes. Special tokens have none.
    The counts of all tokens sum to the bytes of the text up to the end of the last.
    """
    counts, end = [], 0
    for _, stop in offsets:
        counts.append(len(text[end:stop].encode("utf-8")))
        end = max(end, stop)
    return torch.tensor(counts, dtype=torch.int64)
