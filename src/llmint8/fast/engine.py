"""What is made of a model for the fast path, made anew when the model changes."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from llmint8.fast.cache import growing_layers
from llmint8.fast.describe import describe, native_runner
from llmint8.fast.example import check_by_example
from llmint8.fast.rope import RotaryTable
from llmint8.fast.structure import NotCoveredError, causal_head
from llmint8.fast.watch import Watch, trains
from llmint8.ops.direct import nothing_watches

#: What transformers calls the cache in signatures and outputs; it was past_key_values.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
_ATTENTION = ("sdpa", "eager")
#: Arguments that may be given, if they are None or this.
_HARMLESS = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "is_causal": True,
}


class Prepared:
    """A model as it was at one time: what runs it, or the reason why nothing does.

    reason: why its layers do not take the fast path. head_reason: why its head does not.
    """

    def __init__(self, model: Any) -> None:
        base = model.base_model
        self.watch = Watch(model, without=base.rotary_emb)
        self.reason: str | None = None
        self.head_reason: str | None = "the model has no output head"
        self.count = 0
        head = None
        try:
            if self.watch.hooked():
                raise NotCoveredError("a module has hooks or a forward of its own")
            if base is not model:
                try:
                    head, self.head_reason = causal_head(model), None
                except NotCoveredError as error:
                    self.head_reason = str(error)
            description = describe(base, head)
            self.run = native_runner(description)
            check_by_example(base, description)
        except NotCoveredError as error:
            self.reason = str(error)
            return
        self.count = len(description.layers)
        self.kv_heads, self.head_dim = description.kv_heads, description.head_dim
        self.dtype = description.norm.dtype
        self.rope = RotaryTable(base.rotary_emb)


@dataclass(frozen=True)
class Step:
    """The result of a call. hidden: `[B, T, H]` after the final norm; logits: `[B, n, V]` or None."""

    hidden: Tensor
    logits: Tensor | None
    cache: Any


class Engine:
    """Runs a decoder by its description, for as long as that is what the model computes.

    It holds its model weakly, so that `del model` frees it at once; a copy or pickle of the model gets an
    engine of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: weakref.ref[Any] = weakref.ref(model)
        self._prepared: Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._model, self._prepared = weakref.ref(state["model"]), None

    @property
    def model(self) -> Any:
        """The model that was optimised."""
        return self._model()

    def prepared(self) -> Prepared:
        """The description of the model as it is now."""
        if self._prepared is None or not self._prepared.watch.unchanged():
            self._prepared = None  # before the next is made: it may hold the last reference to old weights
            self._prepared = Prepared(self.model)
        return self._prepared

    def run(
        self,
        input_ids: Tensor | None,
        attention_mask: Any,
        position_ids: Any,
        given: dict[str, Any],
        logits: int = 0,
    ) -> Step | None:
        """The layers and, for the last `logits` positions (-1: for all), the head.

        Arguments are those of the decoder's forward. None, with nothing changed, for what is not covered.
        """
        base: Any = self.model.base_model
        given = dict(given)
        cache, embeds = given.pop(CACHE, None), given.pop("inputs_embeds", None)
        use_cache = given.pop("use_cache", None)
        if not _ordinary(base, given) or (input_ids is None) == (embeds is None):
            return None
        state = self.prepared()
        if state.reason or (logits and state.head_reason) or trains(state.watch.tensors()):
            return None
        hidden = base.embed_tokens(input_ids) if embeds is None else embeds
        if not _plain(hidden, state.dtype):
            return None
        batch, new, _ = hidden.shape
        if use_cache is None:
            use_cache = base.config.use_cache
        fresh = cache is None and use_cache
        if fresh:
            cache = DynamicCache(config=base.config)
        layers = None if cache is None else growing_layers(cache, state.count)
        past = layers[0].length if layers else 0
        if (cache is not None and layers is None) or (layers and past and not layers[0].fits(hidden)):
            return None
        known, mask = _key_mask(attention_mask, batch, past + new)
        positions = _positions(position_ids, batch, past, new)
        if not known or positions is None:
            return None
        # Without a mask and a cache, positions that start again say that texts were packed into one row.
        packable = attention_mask is None and position_ids is not None and (cache is None or fresh)
        if packable and new > 1 and bool((positions.diff() != 1).any()):
            return None
        cos, sin = state.rope(hidden, positions)
        if layers is None:
            shape = (batch, state.kv_heads, new, state.head_dim)
            keys = [hidden.new_empty(shape) for _ in range(state.count)]
            values = [hidden.new_empty(shape) for _ in range(state.count)]
        else:
            if any(layer.capacity != layers[0].capacity for layer in layers):
                for layer in layers:
                    layer.capacity = 0  # all get buffers of the same size
            for layer in layers:
                layer.reserve(batch, state.kv_heads, new, state.head_dim, hidden)
            keys = [layer.key_buffer for layer in layers]
            values = [layer.value_buffer for layer in layers]
        last, scores = state.run(
            hidden, cos, sin, keys, values, past, mask, new if logits < 0 else min(logits, new)
        )
        for layer in layers or ():
            layer.length += new
        return Step(last, scores, cache if use_cache else None)


def _ordinary(base: Any, given: dict[str, Any]) -> bool:
    """Whether nothing is asked for that only the modules themselves can give."""
    config = base.config
    return (
        not base.training
        and all(value is None or _HARMLESS.get(key, _HARMLESS) is value for key, value in given.items())
        and config._attn_implementation in _ATTENTION
        and not getattr(config, "output_attentions", False)
        and not getattr(config, "output_hidden_states", False)
        and getattr(config, "is_causal", True) is not False
        and nothing_watches()
    )


def _plain(hidden: Any, dtype: torch.dtype) -> bool:
    return (
        type(hidden) in (Tensor, nn.Parameter)
        and hidden.is_cpu
        and hidden.dim() == 3
        and hidden.dtype == dtype
        and hidden.numel() > 0
    )


def _key_mask(mask: Any, batch: int, length: int) -> tuple[bool, Tensor | None]:
    """Whether a mask is covered, and the mask as bool `[B, length]`, None where everything may be seen."""
    if mask is None:
        return True, None
    if type(mask) is not Tensor or mask.shape != (batch, length) or not mask.is_cpu:
        return False, None
    seen = mask if mask.dtype == torch.bool else mask != 0
    return True, None if bool(seen.all()) else seen


def _positions(position_ids: Any, batch: int, past: int, new: int) -> Tensor | None:
    """Position ids `[B or 1, T]`, or None for those of another kind."""
    if position_ids is None:
        return torch.arange(past, past + new).unsqueeze(0)
    if type(position_ids) is not Tensor or not position_ids.is_cpu or position_ids.dtype != torch.int64:
        return None
    return position_ids if position_ids.shape in ((batch, new), (1, new)) else None
