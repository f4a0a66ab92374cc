"""Notice that a model is no longer what it was when its description was made."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import chain, repeat
from operator import attrgetter, contains, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmint8.nn.threshold import HasThreshold

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Whose hooks transformers leaves behind once outputs were recorded; they wait until that is asked again.
_RECORDING = "transformers.utils.output_capturing"
_threshold = attrgetter("_threshold_code")


class Watch:
    """Remembers modules, their tensors, thresholds and hooks.

    A look is taken for every token, after the weights have swept all this from the caches, so it touches as
    few objects as it can. What is read through a pointer must be the same storage; what it holds may change,
    and is read anew. It holds the root and what lies directly below weakly, since those hold what holds this.

    without: a module that may change, as its own forward is called.
    """

    def __init__(self, root: nn.Module, without: nn.Module) -> None:
        left_out = set(without.modules())
        modules = [module for module in root.modules() if module not in left_out]
        inner = [module for module in modules if module._modules and module is not root]
        self._root = weakref.ref(root)
        self._top = [(name, weakref.ref(child)) for name, child in root.named_children()]
        # Flat lists, so that a look is a few loops in C.
        self._places = [module._modules for module in inner]
        self._children = list(_values(self._places))
        self._owners: list[dict[str, Any]] = [
            owner for module in modules for owner in (module._parameters, module._buffers) if owner
        ]
        self._held = list(_values(self._owners))
        self._tensors: list[Tensor] = [tensor for tensor in self._held if tensor is not None]
        self._read = [tensor for tensor in self._tensors if tensor.dim()]  # not the tags of formats
        self._pointers = list(map(Tensor.data_ptr, self._read))
        self._times_set = HasThreshold.times_set
        self._thresholded = [module for module in modules if isinstance(module, HasThreshold)]
        self._thresholds = list(map(_threshold, self._thresholded))
        self._handles = RemovableHandle.next_id
        self._hooks: list[dict[int, Any]] = [getattr(module, name) for module in modules for name in _HOOKS]
        self._hook_counts = list(map(len, self._hooks))
        own = {root, getattr(root, "base_model", root)}
        self._dicts = [module.__dict__ for module in modules if module not in own]
        self._replaced = self._forwards()
        self._hooked = self._replaced > 0 or any(map(_acts, _values(self._hooks)))

    def _forwards(self) -> int:
        return sum(map(contains, self._dicts, repeat("forward")))

    def unchanged(self) -> bool:
        """Whether every module, tensor, threshold and hook is the one that was there."""
        root = self._root()
        return (
            root is not None
            and len(root._modules) == len(self._top)
            and all(root._modules.get(name) is child() for name, child in self._top)
            and _same(self._owners, self._held)
            and _same(self._places, self._children)
            and list(map(Tensor.data_ptr, self._read)) == self._pointers
            and self._same_thresholds()
            and self._same_hooks()
            and self._forwards() == self._replaced
        )

    def _same_thresholds(self) -> bool:
        now = HasThreshold.times_set
        if now != self._times_set and list(map(_threshold, self._thresholded)) != self._thresholds:
            return False
        self._times_set = now
        return True

    def _same_hooks(self) -> bool:
        """A new hook has a new handle; that one was removed matters only if it did something."""
        now = RemovableHandle.next_id
        if (self._hooked or now != self._handles) and list(map(len, self._hooks)) != self._hook_counts:
            return False
        self._handles = now
        return True

    def hooked(self) -> bool:
        """Whether a module has hooks that do something, or a forward of its own in place of its class's."""
        return self._hooked

    def tensors(self) -> Iterable[Tensor]:
        """Every parameter and buffer."""
        return self._tensors


def _acts(hook: Any) -> bool:
    return getattr(hook, "__module__", None) != _RECORDING


def _values(places: list[dict[Any, Any]]) -> Iterable[Any]:
    return chain.from_iterable(map(dict.values, places))


def _same(places: list[dict[Any, Any]], held: list[Any]) -> bool:
    """Whether they hold what they held, and nothing more."""
    values = list(_values(places))
    return len(values) == len(held) and all(map(is_, values, held))


def trains(tensors: Iterable[Tensor]) -> bool:
    """Whether a gradient would be recorded for any of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
