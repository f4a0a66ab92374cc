"""Compare a model's modules with their description on an example: what names cannot tell shows in numbers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from llmint8.backends.decoder import Runner
from llmint8.fast.structure import NotCoveredError, decoder_layers, norm_epsilon
from llmint8.reference.decoder import Decoder

_TOKENS = 4
#: Rounding in bfloat16, and what int8 makes of it, stays below a few percent; another function does not.
_TOLERANCE = 0.1


@torch.no_grad()
def check_by_example(base: Any, decoder: Decoder, run: Runner) -> None:
    """Hold norms and rotation to their formula, bit for bit, and a few tokens to the model's own forward.

    Raises NotCoveredError for a model that computes something else.
    """
    training = base.training
    if training:
        base.eval()
    try:
        _check_norm(base)
        _check_rotation(base, decoder)
        _check_tokens(base, decoder, run)
    finally:
        if training:
            base.train()


def _check_norm(base: Any) -> None:
    weight, epsilon = base.norm.weight, norm_epsilon(base.norm)
    x = _spread(2, weight.shape[0]).to(weight.dtype)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if not torch.equal(base.norm(x), weight * scaled.to(x.dtype)):
        raise NotCoveredError(f"{type(base.norm).__name__} is another norm than Llama's")


def _check_rotation(base: Any, decoder: Decoder) -> None:
    attention = decoder_layers(base)[0].attention
    rotate = inspect.unwrap(type(attention).forward).__globals__["apply_rotary_pos_emb"]
    x = _spread(1, 1, _TOKENS, decoder.head_dim).to(decoder.norm.dtype)
    cos, sin = base.rotary_emb(x, torch.arange(_TOKENS).unsqueeze(0))
    reason = f"{type(attention).__name__} rotates in another way than Llama's"
    if cos.shape[-1] != decoder.head_dim:
        raise NotCoveredError(reason)
    half = decoder.head_dim // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    if not torch.equal(rotate(x, x, cos, sin)[0], x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)):
        raise NotCoveredError(reason)


def _check_tokens(base: Any, decoder: Decoder, run: Runner) -> None:
    size = base.embed_tokens.weight.shape[0]
    ids = (torch.arange(_TOKENS) * 7 % size).unsqueeze(0)
    hidden = base.embed_tokens(ids)
    if hidden.dtype != decoder.norm.dtype:
        raise NotCoveredError(f"embeddings are {hidden.dtype}, norms are {decoder.norm.dtype}")
    own = type(base).forward(base, inputs_embeds=hidden, use_cache=False).last_hidden_state
    cos, sin = base.rotary_emb(hidden, torch.arange(_TOKENS).unsqueeze(0))
    shape = (1, decoder.kv_heads, _TOKENS, decoder.head_dim)
    keys, values = ([hidden.new_empty(shape) for _ in decoder.layers] for _ in range(2))
    fast, _ = run(hidden, cos, sin, keys, values, 0, None, 0)
    difference = (own.float() - fast.float()).norm() / own.float().norm()
    if not difference <= _TOLERANCE:
        raise NotCoveredError(f"an example of {_TOKENS} tokens differs by {difference:.0%}")


def _spread(*shape: int) -> Tensor:
    """Numbers of both signs and several magnitudes."""
    count = torch.Size(shape).numel()
    return torch.arange(count).sub(count / 3).mul(0.37).sin().mul(2.5).view(shape)
