"""Random decoders and tokens for them, each from a seed: odd sizes, masks, caches, every kind of layer."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from agreement.cases import DTYPES, same_bits
from llmint8.reference import decoder as meaning
from llmint8.reference import quantize_low_digit, quantize_weight
from llmint8.reference.decoder import Decoder, DecoderLayer, Linear


@dataclass(frozen=True)
class Tokens:
    """What `reference.decoder.forward` takes after the decoder."""

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    past: int
    mask: Tensor | None
    logits: int

    def copy(self) -> Tokens:
        """The same tokens with caches of their own."""
        return replace(self, keys=[k.clone() for k in self.keys], values=[v.clone() for v in self.values])

    @property
    def arguments(self) -> tuple[object, ...]:
        return tuple(vars(self).values())


class Maker:
    """Decoders and tokens from one seed."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.choose.choice(DTYPES)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def linear(self, n: int, k: int) -> Linear:
        """int8 with or without a second weight digit, or float; with or without a bias."""
        weight, kind = self.randn(n, k) * 0.2, self.choose.random()
        bias = self.randn(n).to(self.choose.choice(DTYPES)) if self.choose.random() < 0.4 else None
        if kind < 0.2:
            return Linear(weight.to(self.dtype), bias=bias)
        codes, absmax = quantize_weight(weight)
        threshold = self.choose.choice([0.0, 6.0, -1.0])
        if kind < 0.7:
            return Linear(codes, absmax, bias, threshold)
        columns = sorted(self.choose.sample(range(k), self.choose.randint(1, min(k, 5))))
        outlier_cols = torch.tensor(columns, dtype=torch.int32)
        low = quantize_low_digit(weight, codes, absmax, outlier_cols)
        return Linear(codes, absmax, bias, threshold, outlier_cols, low)

    def norm(self, size: int) -> Tensor:
        return (1 + self.randn(size) * 0.2).to(self.dtype)

    def decoder(self) -> Decoder:
        choose = self.choose
        head_dim = choose.choice([2, 6, 8, 16, 18, 32, 48, 64])
        kv_heads, group = choose.choice([1, 2, 3]), choose.choice([1, 2, 3, 4])
        hidden, middle = choose.choice([5, 16, 33, 48]), choose.choice([7, 24, 65])
        query, key = kv_heads * group * head_dim, kv_heads * head_dim
        normed = choose.random() < 0.4

        def layer() -> DecoderLayer:
            return DecoderLayer(
                input_norm=self.norm(hidden),
                q=self.linear(query, hidden),
                k=self.linear(key, hidden),
                v=self.linear(key, hidden),
                o=self.linear(hidden, query),
                post_norm=self.norm(hidden),
                gate=self.linear(middle, hidden),
                up=self.linear(middle, hidden),
                down=self.linear(hidden, middle),
                q_norm=self.norm(head_dim) if normed else None,
                k_norm=self.norm(head_dim) if normed else None,
                activation=choose.choice(["silu", "gelu_tanh", "gelu"]),
                window=choose.choice([None, None, 1, 3, 5, 40]),
            )

        layers = tuple(layer() for _ in range(choose.choice([1, 2])))
        head = self.linear(choose.choice([1, 21]), hidden) if choose.random() < 0.5 else None
        scaling = head_dim**-0.5
        return Decoder(layers, self.norm(hidden), 1e-5, kv_heads * group, kv_heads, head_dim, scaling, head)

    def mask(self, batch: int, keys: int) -> Tensor | None:
        """None, padding on the left, or holes anywhere: some queries see nothing."""
        kind = self.choose.random()
        if kind < 0.4:
            return None
        if kind < 0.7:
            return torch.arange(keys)[None] >= torch.randint(0, keys, (batch, 1), generator=self.generator)
        return torch.rand(batch, keys, generator=self.generator) < 0.6

    def tokens(self, decoder: Decoder) -> Tokens:
        choose = self.choose
        batch, tokens, past = (
            choose.choice([1, 2, 3]),
            choose.choice([1, 1, 2, 5, 9]),
            choose.choice([0, 1, 7, 70]),
        )
        shape = (batch, decoder.kv_heads, past + tokens + choose.choice([0, 3]), decoder.head_dim)
        hidden = self.randn(batch, tokens, len(decoder.norm)) * choose.choice([0.1, 1, 20])
        if choose.random() < 0.1:
            hidden[0, 0, 0] = choose.choice([float("nan"), float("inf")])
        angles = self.randn(choose.choice([1, batch]), tokens, decoder.head_dim)
        caches = [[self.randn(*shape).to(self.dtype) for _ in decoder.layers] for _ in range(2)]
        return Tokens(
            hidden.to(self.dtype),
            angles.cos().to(self.dtype),
            angles.sin().to(self.dtype),
            *caches,
            past,
            self.mask(batch, past + tokens),
            choose.choice([0, 1, tokens]),
        )


Result = tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]


@cache
def random_case(seed: int) -> tuple[Decoder, Tokens, Result]:
    """A decoder, tokens for it, and what the reference makes of them: outputs and caches."""
    maker = Maker(seed)
    decoder = maker.decoder()
    tokens = maker.tokens(decoder)
    filled = tokens.copy()
    return decoder, tokens, (*meaning.forward(decoder, *filled.arguments), filled.keys, filled.values)


def same_results(a: Result, b: Result) -> bool:
    """Equal in every bit."""
    tensors_a, tensors_b = ([*r[2], *r[3], r[0], *([] if r[1] is None else [r[1]])] for r in (a, b))
    return len(tensors_a) == len(tensors_b) and all(map(same_bits, tensors_a, tensors_b))
