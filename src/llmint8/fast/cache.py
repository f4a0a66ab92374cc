"""Keys and values in buffers with room to grow, as layers of transformers' `DynamicCache`.

`DynamicLayer` concatenates: every token copies all tokens before it, in every layer. Here a new token is
written behind the others; a full buffer is replaced by one half as large again. `keys` and `values` are views
of the filled part, so that whatever reads or cuts a cache works as before.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_SPARE = 64


class _Growing:
    """What a layer with or without a sliding window shares. Buffers are `[B, KV, capacity, D]`."""

    key_buffer: Tensor | None
    value_buffer: Tensor | None
    length: int
    is_initialized: bool
    device: torch.device
    #: Tokens that fit; 0 for buffers that somebody else may hold, behind whose end nothing may be written.
    capacity: int

    @property
    def keys(self) -> Tensor | None:
        """The filled part, `[B, KV, length, D]`: a view, which later tokens do not change."""
        return None if self.key_buffer is None else self.key_buffer[:, :, : self.length]

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self.key_buffer, self.capacity = value, 0
        self.length = 0 if value is None or value.dim() < 3 else value.shape[-2]

    @property
    def values(self) -> Tensor | None:
        """The filled part, `[B, KV, length, D]`."""
        return None if self.value_buffer is None else self.value_buffer[:, :, : self.length]

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self.value_buffer = value

    def reserve(self, batch: int, heads: int, new: int, dim: int, like: Tensor) -> None:
        """Make room for `new` tokens behind those that are there."""
        needed = self.length + new
        if needed <= self.capacity:
            return
        capacity = needed + needed // 2 + _SPARE
        buffers = [like.new_empty((batch, heads, capacity, dim)) for _ in range(2)]
        if self.length:
            for buffer, filled in zip(buffers, (self.keys, self.values), strict=True):
                buffer[:, :, : self.length] = cast(Tensor, filled)
        self.key_buffer, self.value_buffer = buffers
        self.capacity = capacity
        self.is_initialized, self.device = True, like.device

    def fits(self, hidden: Tensor) -> bool:
        """Whether tokens with these hidden states `[B, T, H]` can follow."""
        buffer = self.key_buffer
        return (
            buffer is not None
            and buffer.is_cpu
            and buffer.dtype == hidden.dtype
            and buffer.shape[0] == hidden.shape[0]
        )

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values `[B, KV, T, D]` of new tokens."""
        if keys.requires_grad or values.requires_grad:  # written in place, earlier steps would lose theirs
            self._concatenate(keys, values)
            return
        batch, heads, new, dim = keys.shape
        self.reserve(batch, heads, new, dim, keys)
        end = self.length + keys.shape[-2]
        cast(Tensor, self.key_buffer)[:, :, self.length : end] = keys
        cast(Tensor, self.value_buffer)[:, :, self.length : end] = values
        self.length = end

    def _concatenate(self, keys: Tensor, values: Tensor) -> None:
        old_keys, old_values = self.keys, self.values
        if old_keys is not None and old_values is not None and self.length:
            keys, values = torch.cat([old_keys, keys], -2), torch.cat([old_values, values], -2)
        self.keys, self.values = keys, values
        self.is_initialized, self.device = True, keys.device

    def reset(self) -> None:
        """Forget all tokens."""
        self.keys = self.values = None
        self.is_initialized = False

    def get_seq_length(self) -> int:
        """The number of tokens."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens; what is left may be written over."""
        if tokens_to_remove > 0:  # what transformers before 5.20 meant by it: the length to keep
            raise ValueError(f"crop takes a negative count of tokens to remove, got {tokens_to_remove}")
        self.length = max(self.length + tokens_to_remove, 0)

    def _select(self, keys: Tensor, values: Tensor) -> None:
        length, capacity = self.length, self.capacity
        self.keys, self.values = keys, values
        self.length, self.capacity = length, capacity

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the rows of the batch in the order of beams."""
        if self.length and self.key_buffer is not None and self.value_buffer is not None:
            index = beam_idx.to(self.key_buffer.device)
            self._select(self.key_buffer.index_select(0, index), self.value_buffer.index_select(0, index))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self.length and self.key_buffer is not None and self.value_buffer is not None:
            keys = self.key_buffer.repeat_interleave(repeats, dim=0)
            self._select(keys, self.value_buffer.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        if self.length and self.key_buffer is not None and self.value_buffer is not None:
            self._select(self.key_buffer[indices, ...], self.value_buffer[indices, ...])


class GrowingLayer(_Growing, DynamicLayer):  # type: ignore[misc]
    """`DynamicLayer`, with room to grow."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Append keys and values; returns all of them."""
        self.append(key_states, value_states)
        return self.keys, self.values


class GrowingWindowLayer(_Growing, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """`DynamicSlidingWindowLayer` that keeps all tokens, and shows attention those in the window.

    So it can be cropped at any time; it takes the memory of a layer without a window.
    """

    @property
    def cumulative_length(self) -> int:
        """The number of tokens, under the name that transformers uses."""
        return self.length

    @cumulative_length.setter
    def cumulative_length(self, value: int) -> None:
        """Follows from the buffer: there is nothing to set."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Append keys and values; returns what the new tokens can see."""
        self.append(key_states, value_states)
        visible = self.sliding_window - 1 + key_states.shape[-2]
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        return keys[:, :, -visible:], values[:, :, -visible:]


def _grown(layer: Any) -> _Growing | None:
    """The layer itself if it grows in place, one that replaces it, or None if it must stay."""
    kind = type(layer)
    if kind in (GrowingLayer, GrowingWindowLayer):
        return layer  # type: ignore[no-any-return]
    if kind is DynamicLayer:
        new: Any = GrowingLayer()
    elif kind is DynamicSlidingWindowLayer:
        new = GrowingWindowLayer(layer.sliding_window)
        if layer.cumulative_length and layer.keys.shape[-2] < layer.cumulative_length:
            return None  # it has forgotten tokens already
    else:
        return None
    if layer.is_initialized and layer.keys is not None and layer.keys.numel():
        new.keys, new.values = layer.keys, layer.values
        new.is_initialized, new.device = True, layer.device
    return new  # type: ignore[no-any-return]


def growing_layers(cache: Any, count: int) -> list[_Growing] | None:
    """The first `count` layers of a cache, made to grow in place.

    None if that cannot be: another kind of cache, tokens that were forgotten, layers of unequal length.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        return None
    layers = cache.layers
    if cache.layer_class_to_replicate is not None:
        if cache.layer_class_to_replicate is not DynamicLayer:
            return None
        cache.layer_class_to_replicate = GrowingLayer
    if cache.layer_class_to_replicate is GrowingLayer:
        while len(layers) < count:
            layers.append(GrowingLayer())
    if len(layers) < count:
        return None
    for index in range(count):
        if not isinstance(layers[index], _Growing):
            new = _grown(layers[index])
            if new is None:
                return None
            layers[index] = new
    grown: list[_Growing] = layers[:count]
    length = grown[0].length
    return grown if all(layer.length == length for layer in grown) else None
