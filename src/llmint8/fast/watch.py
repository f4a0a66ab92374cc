"""Notice that a model is no longer what it was when its description was made."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_threshold = attrgetter("_threshold_code")


class Watch:
    """Remembers modules, their tensors, thresholds and hooks; `unchanged()` costs some microseconds a layer.

    What is read through a pointer must be the same storage; what it holds may change, and is read anew.

    without: a module that may change, as its own forward is called.
    """

    def __init__(self, root: nn.Module, without: nn.Module) -> None:
        left_out = set(without.modules())
        modules = [module for module in root.modules() if module not in left_out]
        self._places: list[dict[str, Any]] = [m._modules for m in modules if m._modules]
        self._children = [list(place.values()) for place in self._places]
        self._parameters = [m._parameters for m in modules if m._parameters]
        self._buffers = [m._buffers for m in modules if m._buffers]
        self._tensors = self._now()
        self._pointers = list(map(Tensor.data_ptr, self._tensors))
        self._thresholded = [m for m in modules if hasattr(m, "_threshold_code")]
        self._thresholds = list(map(_threshold, self._thresholded))
        self._hooks = [getattr(m, name) for m in modules for name in _HOOKS]
        own = {root, getattr(root, "base_model", root)}
        self._dicts = [m.__dict__ for m in modules if m not in own]

    def _now(self) -> list[Tensor]:
        groups = (self._parameters, self._buffers)
        return [t for group in groups for owner in group for t in owner.values() if t is not None]

    def unchanged(self) -> bool:
        """Whether every module, tensor, threshold and hook is the one that was there."""
        tensors = self._now()
        return (
            len(tensors) == len(self._tensors)
            and all(map(is_, tensors, self._tensors))
            and list(map(Tensor.data_ptr, tensors)) == self._pointers
            and all(
                len(place) == len(children) and all(map(is_, place.values(), children))
                for place, children in zip(self._places, self._children, strict=True)
            )
            and list(map(_threshold, self._thresholded)) == self._thresholds
            and not any(self._hooks)
            and not any("forward" in own for own in self._dicts)
        )

    def hooked(self) -> bool:
        """Whether a module has hooks, or a forward of its own in place of its class's."""
        return any(self._hooks) or any("forward" in own for own in self._dicts)

    def tensors(self) -> Iterable[Tensor]:
        """Every parameter and buffer."""
        return self._tensors


def trains(tensors: Iterable[Tensor]) -> bool:
    """Whether a gradient would be recorded for any of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
