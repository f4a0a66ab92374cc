"""Compare a model's modules with their description on an example: what names cannot tell shows in numbers."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llmint8.fast.describe import native_runner
from llmint8.fast.structure import NotCoveredError, decoder_layers, norm_epsilon
from llmint8.reference.decoder import Decoder

_TOKENS = 4
#: What rounding in bfloat16 moves within one layer, codes that fall to the other side of an edge included,
#: stays below this; another function does not. It would add up over layers: each gets its module's own input.
_TOLERANCE = 0.05


@torch.no_grad()
def check_by_example(base: Any, decoder: Decoder) -> None:
    """Hold norms and rotation to their formula, bit for bit, and each layer to its module on a few tokens.

    Raises NotCoveredError for a model that computes something else.
    """
    training = base.training
    if training:
        base.eval()
    try:
        _check_norm(base)
        _check_rotation(base, decoder)
        _check_layers(base, decoder)
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


def _check_layers(base: Any, decoder: Decoder) -> None:
    size = base.embed_tokens.weight.shape[0]
    hidden = base.embed_tokens((torch.arange(_TOKENS) * 7 % size).unsqueeze(0))
    if hidden.dtype != decoder.norm.dtype:
        raise NotCoveredError(f"embeddings are {hidden.dtype}, norms are {decoder.norm.dtype}")
    cos, sin = base.rotary_emb(hidden, torch.arange(_TOKENS).unsqueeze(0))
    shape = (1, decoder.kv_heads, _TOKENS, decoder.head_dim)
    seen = zip(decoder.layers, _inputs_and_outputs(base, hidden), strict=True)
    for index, (layer, (given, returned)) in enumerate(seen):
        run = native_runner(replace(decoder, layers=(layer,), head=None))
        cache = [[hidden.new_empty(shape)] for _ in range(2)]
        fast, _ = run(given, cos, sin, *cache, 0, None, 0)
        own = base.norm(returned).float()
        difference = (own - fast.float()).norm() / own.norm()
        if not difference <= _TOLERANCE:
            raise NotCoveredError(
                f"layer {index} differs by {difference:.0%} in an example of {_TOKENS} tokens"
            )


def _inputs_and_outputs(base: Any, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What goes into each layer and comes out of it in the model's own forward."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], returned: Any) -> None:
        seen.append((given[0], returned[0] if isinstance(returned, tuple) else returned))

    hooks = [layer.register_forward_hook(note) for layer in base.layers]
    try:
        type(base).forward(base, inputs_embeds=hidden, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _spread(*shape: int) -> Tensor:
    """Numbers of both signs and several magnitudes."""
    count = torch.Size(shape).numel()
    return torch.arange(count).sub(count / 3).mul(0.37).sin().mul(2.5).view(shape)
