"""Casts of modules with int8 weights: scales and codes move between devices, and never change their dtype."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def keeping(fn: Callable[[Tensor], Tensor], *scales: Tensor) -> Callable[[Tensor], Tensor]:
    """`fn`, what `.half()` or `.to()` does to each tensor, without casting `scales` and whatever is no float.

    `.half()` would round the scales, `.type()` also the codes.
    """

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        fixed = any(tensor is scale for scale in scales) or not tensor.is_floating_point()
        return tensor.to(moved.device) if fixed and moved.dtype != tensor.dtype else moved

    return move
