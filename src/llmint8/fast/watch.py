"""Notice that a model is no longer what it was when its description was made."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import repeat, starmap
from operator import attrgetter, contains, getitem, is_
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Whose hooks transformers leaves behind once outputs were recorded; they wait until that is asked again.
_RECORDING = "transformers.utils.output_capturing"
_threshold = attrgetter("_threshold_code")


class Watch:
    """Remembers modules, their tensors, thresholds and hooks; a look at them takes microseconds a layer.

    What is read through a pointer must be the same storage; what it holds may change, and is read anew.
    It holds the root and what lies directly below weakly, since those hold what holds this.

    without: a module that may change, as its own forward is called.
    """

    def __init__(self, root: nn.Module, without: nn.Module) -> None:
        left_out = set(without.modules())
        modules = [module for module in root.modules() if module not in left_out]
        inner = [module for module in modules if module._modules and module is not root]
        self._root = weakref.ref(root)
        self._top = [(name, weakref.ref(child)) for name, child in root.named_children()]
        # Flat lists of owners and keys, so that a look is a few loops in C.
        self._places = [module._modules for module in inner]
        self._place_keys = [(place, key) for place in self._places for key in place]
        self._children = [place[key] for place, key in self._place_keys]
        self._owners: list[dict[str, Any]] = [
            owner for module in modules for owner in (module._parameters, module._buffers) if owner
        ]
        self._tensor_keys = [(owner, key) for owner in self._owners for key in owner]
        self._held = [owner[key] for owner, key in self._tensor_keys]
        self._tensors: list[Tensor] = [tensor for tensor in self._held if tensor is not None]
        self._pointers = list(map(Tensor.data_ptr, self._tensors))
        self._thresholded = [module for module in modules if hasattr(module, "_threshold_code")]
        self._thresholds = list(map(_threshold, self._thresholded))
        self._hooks: list[dict[int, Any]] = [getattr(module, name) for module in modules for name in _HOOKS]
        self._hook_counts = list(map(len, self._hooks))
        own = {root, getattr(root, "base_model", root)}
        self._dicts = [module.__dict__ for module in modules if module not in own]
        self._replaced = self._forwards()

    def _forwards(self) -> int:
        return sum(map(contains, self._dicts, repeat("forward")))

    def unchanged(self) -> bool:
        """Whether every module, tensor, threshold and hook is the one that was there."""
        root = self._root()
        return (
            root is not None
            and len(root._modules) == len(self._top)
            and all(root._modules.get(name) is child() for name, child in self._top)
            and _same(self._owners, self._tensor_keys, self._held)
            and _same(self._places, self._place_keys, self._children)
            and list(map(Tensor.data_ptr, self._tensors)) == self._pointers
            and list(map(_threshold, self._thresholded)) == self._thresholds
            and list(map(len, self._hooks)) == self._hook_counts
            and self._forwards() == self._replaced
        )

    def hooked(self) -> bool:
        """Whether a module has hooks that do something, or a forward of its own in place of its class's."""
        hooks = (hook for place in self._hooks for hook in place.values())
        return self._replaced > 0 or any(getattr(hook, "__module__", None) != _RECORDING for hook in hooks)

    def tensors(self) -> Iterable[Tensor]:
        """Every parameter and buffer."""
        return self._tensors


def _same(owners: list[dict[str, Any]], places: list[tuple[dict[str, Any], str]], held: list[Any]) -> bool:
    """Whether owners hold what they held, and nothing more."""
    if sum(map(len, owners)) != len(held):
        return False
    try:
        return all(map(is_, starmap(getitem, places), held))
    except KeyError:
        return False


def trains(tensors: Iterable[Tensor]) -> bool:
    """Whether a gradient would be recorded for any of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
