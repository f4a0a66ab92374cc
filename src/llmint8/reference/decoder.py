"""A decoder of Llama's kind as plain tensors, and what it computes (docs/numerics.md, "Decoder").

The modules of Llama, Mistral, Qwen2 and Qwen3 in transformers define the meaning: the same steps, rounded to
the model's dtype at the same points. Attention and the norms sum in float32 in a fixed order, so that every
instruction set returns these bits, and a token's result depends on nothing but the tokens that it attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmint8.reference.floats import (
    ACTIVATIONS,
    canonical,
    exp,
    lane_sum,
    pair_sum,
    rms_norm,
    rotate,
    without_specks,
)
from llmint8.reference.matmul import linear as int8_linear


@dataclass(frozen=True)
class Linear:
    """A linear layer without its module.

    weight: int8 `[N, K]` with absmax float32 `[N]`, or float `[N, K]` of the decoder's dtype.
    bias: float `[N]`. threshold: its code, as in `reference.linear`; only for an int8 weight.
    outlier_cols, weight_low: int32 `[P]` and int8 `[N, P]`, the second weight digit of a few columns.
    """

    weight: Tensor
    absmax: Tensor | None = None
    bias: Tensor | None = None
    threshold: float = 0.0
    outlier_cols: Tensor | None = None
    weight_low: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`, in the dtype of x."""
        rows = x.reshape(-1, x.shape[-1])
        if self.absmax is None:
            y = float_linear(rows, self.weight, self.bias)
        else:
            y = int8_linear(
                rows, self.weight, self.absmax, self.bias, self.threshold, self.outlier_cols, self.weight_low
            )
        return y.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class DecoderLayer:
    """One layer. Norms are `[H]` (q_norm and k_norm `[D]`, or None) of the decoder's dtype.

    activation: "silu", "gelu_tanh" or "gelu".
    window: how many tokens a query sees, itself included; None for all before it.
    """

    input_norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    post_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    activation: str = "silu"
    window: int | None = None


@dataclass(frozen=True)
class Decoder:
    """All layers, the final norm `[H]`, and optionally the output head.

    heads, kv_heads, head_dim: of attention; heads is a multiple of kv_heads, head_dim even.
    scaling: what scores are multiplied by. epsilon: of every norm.
    The dtype of the norm, float32, float16 or bfloat16, is the dtype of activations and caches.
    """

    layers: tuple[DecoderLayer, ...]
    norm: Tensor
    epsilon: float
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    head: Linear | None = None


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + bias` in float32 with sums in the fixed order, rounded to the dtype of x.

    x: float `[M, K]`; weight: float `[N, K]`; bias: float `[N]`. Returns `[M, N]`; NaNs are canonical.
    """
    wide = weight.float()
    rows = [lane_sum(row * wide) for row in x.float()]
    y = torch.stack(rows) if rows else x.new_zeros(0, len(weight), dtype=torch.float32)
    return canonical((y if bias is None else y + bias.float()).to(x.dtype))


def _allowed(tokens: int, past: int, mask: Tensor | None, window: int | None) -> Tensor:
    """Which keys each query attends to: bool `[B or 1, T, past + T]`."""
    key, query = torch.arange(past + tokens), torch.arange(past, past + tokens)[:, None]
    allowed = key <= query
    if window is not None:
        allowed = allowed & (key > query - window)
    return allowed[None] if mask is None else allowed[None] & mask[:, None, :]


def _masked_last(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Entries of keys that the mask `[B, S]` forbids behind all others, along `dim` of `[B or 1, ...]`."""
    if mask is None:
        return x
    orders = mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)
    rows = x.expand(len(mask), *x.shape[1:])
    return torch.stack([row.index_select(dim - 1, order) for row, order in zip(rows, orders, strict=True)])


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scaling: float) -> Tensor:
    """Softmax attention, weights rounded to the dtype as in torch's 16-bit kernels; sums in float32.

    query: float `[B, heads, T, D]`; key, value: `[B, kv_heads, S, D]` of the same dtype; allowed: bool
    `[B or 1, T, S]`. A key's number decides where it goes in the order of sums, so keys that are masked for a
    whole sequence come last.

    Returns float32 `[B, heads, T, D]`; 0 for a query without keys.
    """
    group, dtype = query.shape[1] // key.shape[1], query.dtype
    query, key, value = (without_specks(x) for x in (query, key, value))
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    allowed = allowed[:, None]
    scores = torch.stack([pair_sum(query * key[:, :, j : j + 1]) for j in range(key.shape[2])], -1) * scaling
    scores = scores.masked_fill(~allowed, float("-inf"))
    largest = scores.nan_to_num(float("-inf"), float("inf"), float("-inf")).amax(-1, keepdim=True)
    weights = without_specks(torch.where(allowed, exp(scores - largest), 0.0).to(dtype))
    total = lane_sum(weights)[..., None]
    result = pair_sum(torch.where(allowed[..., None, :], weights[..., None, :] * value.mT[:, :, None], 0.0))
    return torch.where(allowed.any(-1, keepdim=True), result * (torch.ones_like(total) / total), 0.0)


def forward(
    decoder: Decoder,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    past: int,
    mask: Tensor | None = None,
    logits: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Run all layers and the final norm on T new tokens of each of B sequences.

    hidden: `[B, T, H]`, the embeddings. cos, sin: `[B or 1, T, D]`, for the positions of these tokens.
    keys, values: of each layer, `[B, kv_heads, capacity, D]`, in which the first `past` positions are filled;
    the new tokens are written behind them, nothing else is changed. All floats have the decoder's dtype.
    mask: bool `[B, past + T]`, True where a token may be attended to; None for everywhere. Whatever it says,
    a token attends to none behind it.
    logits: for how many last positions the head is computed; 0 for none.

    Returns the hidden states after the final norm `[B, T, H]`, and the logits `[B, logits, N]` or None.
    """
    tokens = hidden.shape[1]
    end = past + tokens

    def split(x: Tensor, norm: Tensor | None) -> Tensor:
        """`[B, T, heads * D]` to `[B, heads, T, D]`, normed if there is a norm."""
        x = x.unflatten(-1, (-1, decoder.head_dim))
        return (x if norm is None else rms_norm(x, norm, decoder.epsilon)).transpose(1, 2)

    for layer, key, value in zip(decoder.layers, keys, values, strict=True):
        x = rms_norm(hidden, layer.input_norm, decoder.epsilon)
        query = rotate(split(layer.q(x), layer.q_norm), cos, sin)
        key[:, :, past:end] = canonical(rotate(split(layer.k(x), layer.k_norm), cos, sin))
        value[:, :, past:end] = split(layer.v(x), None)
        allowed = _allowed(tokens, past, mask, layer.window)
        seen, held = (_masked_last(x[:, :, :end], mask, 2) for x in (key, value))
        mixed = attention(query, seen, held, _masked_last(allowed, mask, 2), decoder.scaling)
        hidden = hidden + layer.o(mixed.to(hidden.dtype).transpose(1, 2).flatten(2))
        x = rms_norm(hidden, layer.post_norm, decoder.epsilon)
        gate = ACTIVATIONS[layer.activation](layer.gate(x).float()).to(hidden.dtype)
        hidden = hidden + layer.down(gate * layer.up(x))
    hidden = canonical(rms_norm(hidden, decoder.norm, decoder.epsilon))
    if decoder.head is None or logits == 0:
        return hidden, None
    return hidden, decoder.head(hidden[:, -logits:])
