"""Times of a call of `generate`, taken where transformers hands out the tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Speed:
    """Tokens and seconds of one generation; the first new token counts as the end of the prompt."""

    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    new_seconds: float

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds

    @property
    def new_rate(self) -> float | None:
        """New tokens per second after the first; None if there was but one."""
        return (self.new_tokens - 1) / self.new_seconds if self.new_tokens > 1 else None


class TokenClock:
    """A streamer for `generate`, which calls `put` with the prompt `[1, T]` and then with each new token.

    inner: a streamer that gets the same calls.
    """

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner
        self._prompt_tokens = 0
        self._times: list[float] = []

    def put(self, value: Any) -> None:
        """Note the time, and how long the prompt is."""
        if not self._times:
            self._prompt_tokens = value.numel()
        self._times.append(time.perf_counter())
        if self._inner is not None:
            self._inner.put(value)

    def end(self) -> None:
        """Nothing more comes."""
        if self._inner is not None:
            self._inner.end()

    def speed(self) -> Speed:
        """The figures, once `generate` has returned."""
        start, first, last = self._times[0], self._times[1], self._times[-1]
        return Speed(self._prompt_tokens, first - start, len(self._times) - 1, last - first)
