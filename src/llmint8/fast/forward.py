"""The forwards that an optimised model gets: the fast path where it is right, else the class's own.

They stand in the instance's `__dict__`, as those of accelerate's hooks do, so that `model(...)` and
`model.generate` find them.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from llmint8.fast.engine import CACHE, Engine


class FastForward:
    """Callable in place of a module's forward, with the same arguments, signature and result."""

    def __init__(self, module: nn.Module, engine: Engine) -> None:
        self._module: weakref.ref[Any] = weakref.ref(module)
        self.engine = engine

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self._module(), "engine": self.engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._module, self.engine = weakref.ref(state["module"]), state["engine"]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def original(self) -> Callable[..., Any]:
        """The forward of the class."""
        module: Any = self._module()
        forward: Any = type(module).forward
        return forward.__get__(module)  # type: ignore[no-any-return]


class DecoderForward(FastForward):
    """The forward of a decoder without its head."""

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Hidden states after the final norm, and the cache."""
        step = None if args else self.engine.run(input_ids, attention_mask, position_ids, kwargs)
        if step is None:
            return self.original(input_ids, attention_mask, position_ids, *args, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=step.hidden, **{CACHE: step.cache})


class CausalForward(FastForward):
    """The forward of a causal language model: the decoder and its head in one call."""

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Logits and the cache. With labels, the class's forward computes the loss on the fast layers."""
        given = dict(kwargs)
        keep = given.pop("logits_to_keep", 0)
        if not args and type(keep) is int and keep >= 0:
            step = self.engine.run(input_ids, attention_mask, position_ids, given, keep or -1)
            if step is not None:
                return CausalLMOutputWithPast(logits=step.logits, **{CACHE: step.cache})
        return self.original(input_ids, attention_mask, position_ids, *args, **kwargs)
