"""What a runner returns, and what it must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Generation:
    """One call: seconds to the first new token and for all further ones, and the new tokens of each row."""

    first_seconds: float
    further_seconds: float
    tokens: list[list[int]]


class Runner(Protocol):
    """A model in some library. It imports that library when it is made, and loads nothing yet."""

    def load(self) -> None:
        """Load the model, as its user would."""

    def generate(self, rows: list[list[int]], new_tokens: int) -> Generation:
        """Continue rows of token ids of one length by a fixed count of tokens, greedily."""
