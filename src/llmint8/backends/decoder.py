"""Whole decoders on the CPU kernels: one call of the library runs all layers."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from llmint8.backends.decoder_header import (
    ACTIVATIONS,
    DecoderStruct,
    LayerStruct,
    LinearStruct,
    TokensStruct,
)
from llmint8.backends.native import DTYPES, Native
from llmint8.errors import InputError
from llmint8.reference.decoder import Decoder, DecoderLayer, Linear

#: Takes what `reference.decoder.forward` takes after the decoder, and returns what it does.
Runner = Callable[..., "tuple[Tensor, Tensor | None]"]

_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")


def _tensors(decoder: Decoder) -> Iterator[Tensor]:
    linears = [getattr(layer, name) for layer in decoder.layers for name in _LINEARS]
    for linear in [*linears, decoder.head]:
        if linear is not None:
            yield from (t for t in vars(linear).values() if isinstance(t, Tensor))
    norms = (getattr(layer, name) for layer in decoder.layers for name in _NORMS)
    yield from (norm for norm in norms if norm is not None)
    yield decoder.norm


class NativeDecoder:
    """`reference.decoder.forward` of one decoder, with the same bits.

    The library is given addresses: the decoder's tensors are kept, and must not be given other memory.

    Raises InputError for a decoder whose tensors are no contiguous CPU tensors of the dtypes and sizes that
    `reference.decoder` names.
    """

    def __init__(self, decoder: Decoder, native: Native) -> None:
        self.decoder = decoder
        self._native = native
        self._tensors = list(_tensors(decoder))
        self._seen: list[weakref.ref[Tensor]] = []
        self._hidden, self._dtype = len(decoder.norm), decoder.norm.dtype
        if self._dtype not in DTYPES or any(not t.is_cpu or not t.is_contiguous() for t in self._tensors):
            raise InputError(
                "a decoder needs contiguous tensors in the memory of the CPU, of float32, float16 or "
                "bfloat16; move or convert the model"
            )
        layers = (LayerStruct * len(decoder.layers))(*map(self._layer, decoder.layers))
        head = None if decoder.head is None else self._linear(decoder.head)
        self._kept = layers, head
        self._struct = DecoderStruct(
            layers=ctypes.addressof(layers),
            norm=self._norm(decoder.norm, self._hidden),
            head=None if head is None else ctypes.addressof(head),
            layer_count=len(layers),
            hidden=self._hidden,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            epsilon=decoder.epsilon,
            scaling=decoder.scaling,
            dtype=DTYPES[self._dtype],
        )
        self._decoder_address = ctypes.addressof(self._struct)
        self._pointers = ctypes.c_void_p * len(layers)

    def _norm(self, weight: Tensor | None, size: int) -> int | None:
        if weight is None:
            return None
        if weight.dtype != self._dtype or weight.shape != (size,):
            raise InputError(
                f"a norm must be {self._dtype} [{size}], got {weight.dtype} {list(weight.shape)}"
            )
        return weight.data_ptr()

    def _linear(self, linear: Linear) -> LinearStruct:
        weight, absmax, bias = linear.weight, linear.absmax, linear.bias
        columns, low = linear.outlier_cols, linear.weight_low
        n, k = weight.shape
        right = weight.dtype == (self._dtype if absmax is None else torch.int8)
        right = right and (absmax is None or (absmax.dtype, absmax.shape) == (torch.float32, (n,)))
        right = right and (bias is None or (bias.dtype in DTYPES and bias.shape == (n,)))
        right = right and (columns is None) == (low is None) and (absmax is not None or columns is None)
        if columns is not None and low is not None:
            right = right and columns.dtype == torch.int32 and low.dtype == torch.int8
            right = right and low.shape == (n, *columns.shape)
        if not right:
            raise InputError(
                f"a linear layer [{n}, {k}] of a {self._dtype} decoder has tensors of other dtypes or sizes "
                "than reference.decoder.Linear names"
            )
        return LinearStruct(
            weight=weight.data_ptr(),
            absmax=None if absmax is None else absmax.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            outlier_cols=None if columns is None else columns.data_ptr(),
            weight_low=None if low is None else low.data_ptr(),
            n=n,
            k=k,
            outliers=0 if columns is None else len(columns),
            threshold=linear.threshold,
            bias_dtype=DTYPES[self._dtype if bias is None else bias.dtype],
        )

    def _layer(self, layer: DecoderLayer) -> LayerStruct:
        linears = {name: self._linear(getattr(layer, name)) for name in _LINEARS}
        return LayerStruct(
            **linears,
            input_norm=self._norm(layer.input_norm, self._hidden),
            post_norm=self._norm(layer.post_norm, self._hidden),
            q_norm=self._norm(layer.q_norm, self.decoder.head_dim),
            k_norm=self._norm(layer.k_norm, self.decoder.head_dim),
            window=layer.window or 0,
            activation=ACTIVATIONS[layer.activation],
        )

    def _check_cache(self, keys: Sequence[Tensor], values: Sequence[Tensor], batch: int) -> None:
        """All layers' caches alike: only when other tensors come than last time, since it takes a while."""
        caches = [*keys, *values]
        if len(caches) == len(self._seen) and all(t is r() for t, r in zip(caches, self._seen, strict=True)):
            return
        want = (batch, self.decoder.kv_heads, keys[0].shape[2], self.decoder.head_dim)
        layers = len(self.decoder.layers)
        if len(keys) != layers or len(values) != layers:
            raise InputError(f"keys and values must be of {layers} layers, got {len(keys)}, {len(values)}")
        for t in caches:
            if t.shape != want or t.dtype != self._dtype or not t.is_contiguous() or not t.is_cpu:
                raise InputError(
                    f"keys and values must be contiguous {self._dtype} {list(want)} on the CPU, "
                    f"got {t.dtype} {list(t.shape)}"
                )
        self._seen = [weakref.ref(t) for t in caches]

    def __call__(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        past: int,
        mask: Tensor | None = None,
        logits: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """As `reference.decoder.forward`; keys and values must be contiguous.

        Raises InputError for another dtype, shape or device, BackendError if the library refuses the call.
        """
        batch, tokens, _ = hidden.shape
        self._check_cache(keys, values, batch)
        angles = (tokens, self.decoder.head_dim)
        if hidden.dtype != self._dtype or cos.dtype != self._dtype or sin.dtype != self._dtype:
            raise InputError(f"hidden, cos and sin must be {self._dtype}")
        if hidden.shape[2] != self._hidden or cos.shape != sin.shape or cos.shape[1:] != angles:
            raise InputError(f"hidden must be [B, T, {self._hidden}], cos and sin [B or 1, T, {angles[1]}]")
        if keys[0].shape[0] != batch:
            raise InputError(f"the cache holds {keys[0].shape[0]} sequences, hidden {batch}")
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != (batch, past + tokens):
                raise InputError(f"the mask must be bool [{batch}, {past + tokens}], got {list(mask.shape)}")
            mask = mask.contiguous()
        hidden, cos, sin = hidden.contiguous(), cos.contiguous(), sin.contiguous()
        out, scores = torch.empty_like(hidden), None
        last = 0
        if self.decoder.head is not None and logits:
            last, scores = logits, hidden.new_empty((batch, logits, len(self.decoder.head.weight)))
        # Of this call alone: other threads may run theirs at the same time.
        key_pointers = self._pointers(*map(Tensor.data_ptr, keys))
        value_pointers = self._pointers(*map(Tensor.data_ptr, values))
        call = TokensStruct(
            hidden.data_ptr(), cos.data_ptr(), sin.data_ptr(), None if mask is None else mask.data_ptr(),
            ctypes.addressof(key_pointers), ctypes.addressof(value_pointers), out.data_ptr(),
            None if scores is None else scores.data_ptr(),
            batch, tokens, past, keys[0].shape[2], cos.shape[0], last,
        )  # fmt: skip
        self._native.call("llmint8_decode", self._decoder_address, ctypes.addressof(call))
        return out, scores
