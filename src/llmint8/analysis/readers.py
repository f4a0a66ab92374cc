"""Which linear layers read the output of which norm: found by watching one forward pass, not by names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmint8.analysis.weights import linear_weight


@dataclass
class Norm:
    """A norm as the forward pass showed it.

    call: arguments of its first call. output: float `[..., K]` of that call. readers: names of the linear
    layers that were given its output. obstacle: why its columns cannot be scaled, or None.
    """

    name: str
    module: nn.Module
    call: tuple[tuple[Any, ...], dict[str, Any]]
    output: Tensor
    readers: dict[str, None] = field(default_factory=dict)
    obstacle: str | None = None


def find_readers(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[Norm], list[Tensor]]:
    """Run the model once and watch its norms.

    inputs: keyword arguments of the model. A norm is a module without children that has a weight `[K]` and
    returns `[..., K]` in the shape of its input.

    Returns the norms in the order of their calls, and all tensors of the model's output.
    """
    trace = _Trace(model)
    handles = [handle for name, module in model.named_modules() for handle in trace.watch(name, module)]
    try:
        with torch.no_grad(), trace:
            outputs = list(tensors_in(model(**inputs)))
    finally:
        for handle in handles:
            handle.remove()
    return trace.finish(outputs), outputs


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(part)


class _Trace(TorchFunctionMode):
    """Sees each torch function outside of linear layers: one that makes a new tensor of a norm's output is
    an obstacle, one that returns a view of it is not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._norms: dict[str, Norm] = {}
        self._by_storage: dict[int, Norm] = {}
        self._alive: list[Tensor] = []  # else a storage could be given to another tensor
        self._in_linear = 0
        self._sources: dict[str, set[str | None]] = {}
        owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
        self._shared = {key for key, count in owners.items() if count > 1}
        self._model = model

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        """Hooks on a module that may be a norm or a linear layer; none on any other."""
        if linear_weight(module) is not None:
            return self._watch_linear(name, module)
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() != 1 or next(module.children(), None) is not None:
            return []

        def called(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next(tensors_in((args, kwargs)), None)
            if not isinstance(output, Tensor) or given is None or given.shape != output.shape:
                return
            if output.shape[-1:] != weight.shape:
                return
            norm = self._norms.setdefault(name, Norm(name, module, (args, kwargs), output))
            self._by_storage[_storage(output)] = norm
            self._alive.append(output)

        return [module.register_forward_hook(called, with_kwargs=True)]

    def _watch_linear(self, name: str, module: nn.Module) -> list[Any]:
        def enters(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = next(tensors_in((args, kwargs)), None)
            norm = None if given is None else self._by_storage.get(_storage(given))
            if given is not None and norm is not None:
                norm.readers[name] = None
                if given.shape[-1] != norm.output.shape[-1]:
                    norm.obstacle = f"{name} reads it in another shape"
            self._sources.setdefault(name, set()).add(None if norm is None else norm.name)
            self._in_linear += 1

        def leaves(*_: Any) -> None:
            self._in_linear -= 1

        return [
            module.register_forward_pre_hook(enters, with_kwargs=True),
            module.register_forward_hook(leaves),
        ]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._in_linear or not self._by_storage:
            return result
        with torch._C.DisableTorchFunction():
            read = {_storage(t) for t in tensors_in((args, kwargs))} & self._by_storage.keys()
            made = {_storage(t) for t in tensors_in(result)} - read
        for storage in read if made else ():
            norm = self._by_storage[storage]
            norm.obstacle = (
                norm.obstacle or f"{getattr(func, '__name__', func)} reads it too, outside of a linear layer"
            )
        return result

    def finish(self, outputs: list[Tensor]) -> list[Norm]:
        returned = {_storage(tensor) for tensor in outputs}
        for storage, norm in self._by_storage.items():
            if storage in returned:
                norm.obstacle = norm.obstacle or "the model returns its output"
        for norm in self._norms.values():
            norm.obstacle = norm.obstacle or self._obstacle(norm)
        return list(self._norms.values())

    def _obstacle(self, norm: Norm) -> str | None:
        if not norm.readers:
            return "no linear layer reads it"
        for name in norm.readers:
            if self._sources[name] != {norm.name}:
                return f"{name} reads other tensors too"
            if id(self._model.get_submodule(name).weight) in self._shared:
                return f"{name} shares its weight with another module"
        if any(id(p) in self._shared for p in norm.module.parameters()):
            return "it shares its weight with another module"
        return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
