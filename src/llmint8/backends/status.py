"""What `llmint8 doctor` shows of a backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackendStatus:
    """One way to run the operations: whether it can, whether it does, and the reason or what it offers."""

    name: str
    available: bool
    active: bool
    detail: str
