"""A text cut into the windows that a model reads, and which tokens of each window count.

A model reads `context` tokens at most. Disjoint windows are the cheapest cut: each token is read once, and
those at the start of a window are predicted from little. Strided windows overlap: every token after the first
window is predicted from at least `context - stride` tokens, for `context / stride` times the work.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmint8.errors import InputError


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a text are read, those from `first` on are scored. stop is exclusive."""

    start: int
    stop: int
    first: int

    @property
    def scored(self) -> int:
        """How many tokens count."""
        return self.stop - self.first


def plan_windows(tokens: int, context: int, stride: int | None = None) -> list[Window]:
    """Windows of `context` tokens that advance by `stride`, over a text of `tokens`; no token counts twice.

    stride: None is `context`, windows that share no token. The first token of a window has nothing before it
        and never counts; with a stride below the context that is the first token of the text alone.

    Raises InputError for fewer than 2 tokens, a context below 2, or a stride not from 1 to the context.
    """
    stride = context if stride is None else stride
    if context < 2:
        raise InputError(f"the context must be at least 2 tokens, got {context}")
    if not 1 <= stride <= context:
        raise InputError(
            f"the stride must be from 1 to the context of {context} tokens, got {stride}: "
            "a longer one would leave tokens out"
        )
    if tokens < 2:
        raise InputError(f"an evaluation needs at least 2 tokens, got {tokens}; give more text")
    windows, counted = [], 1
    for start in range(0, tokens, stride):
        stop = min(start + context, tokens)
        window = Window(start, stop, max(counted, start + 1))
        if window.scored:  # not so for one token left over, which predicts nothing
            windows.append(window)
        if stop == tokens:
            break
        counted = stop
    return windows


def split_windows(ids: Tensor, context: int) -> list[Tensor]:
    """Cut token ids int64 `[T]` into consecutive windows `[1, <= context]` that share no token.

    Raises InputError for fewer than 2 tokens or a context below 2: nothing could be predicted.
    """
    check_row(ids)
    return [ids[None, window.start : window.stop] for window in plan_windows(len(ids), context)]


def check_row(ids: Tensor) -> None:
    """Raise InputError unless token ids are one row `[T]`, T at least 2."""
    if ids.dim() != 1 or len(ids) < 2:
        raise InputError(f"an evaluation needs at least 2 tokens [T], got {list(ids.shape)}; give more text")
