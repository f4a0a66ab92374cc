"""The reference decoder computes what the modules of transformers compute."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from llmint8.reference import quantize_weight
from llmint8.reference.decoder import Decoder, DecoderLayer, Linear, attention, forward

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}
CONFIGS = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    MistralConfig(**SIZES, sliding_window=5),
    Qwen2Config(**SIZES, hidden_act="gelu_pytorch_tanh"),
    Qwen3Config(**SIZES),
]
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}


def float_linear(module: torch.nn.Linear) -> Linear:
    return Linear(module.weight.data, bias=None if module.bias is None else module.bias.data)


def describe(model: Any) -> Decoder:
    """A transformers model as the reference takes it, in float."""
    config, base = model.config, model.model
    window = getattr(config, "sliding_window", None)
    layers = []
    for layer in base.layers:
        own, mlp = layer.self_attn, layer.mlp
        norms = {n: getattr(own, n).weight.data for n in ("q_norm", "k_norm") if hasattr(own, n)}
        linears = {n: float_linear(getattr(own, f"{n}_proj")) for n in "qkvo"}
        linears |= {n: float_linear(getattr(mlp, f"{n}_proj")) for n in ("gate", "up", "down")}
        layers.append(
            DecoderLayer(
                input_norm=layer.input_layernorm.weight.data,
                post_norm=layer.post_attention_layernorm.weight.data,
                activation=ACTIVATIONS.get(config.hidden_act, config.hidden_act),
                window=window,
                **linears,
                **norms,
            )
        )
    norm, scaling = base.norm.weight.data, base.layers[0].self_attn.scaling
    head = float_linear(model.lm_head)
    return Decoder(tuple(layers), norm, config.rms_norm_eps, 4, 2, 8, scaling, head)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.model_type}-{c.hidden_act}")
def test_logits_of_transformers(config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
    ids = torch.randint(0, 61, (2, 19))
    mask = torch.ones(2, 19, dtype=torch.long)
    mask[1, :6] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    decoder = describe(model)
    keys, values = ([torch.zeros(2, 2, 20, 8) for _ in decoder.layers] for _ in range(2))
    with torch.no_grad():
        want = model(ids, attention_mask=mask, position_ids=positions).logits
        hidden = model.model.embed_tokens(ids)
        cos, sin = model.model.rotary_emb(hidden, positions)
        _, got = forward(decoder, hidden, cos, sin, keys, values, 0, mask.bool(), 19)
    seen = mask.bool()
    assert (got[seen] - want[seen]).abs().max() < 1e-5 * want[seen].abs().max()


def test_int8_layers_take_the_integer_contract() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    codes, absmax = quantize_weight(weight)
    layer = Linear(codes, absmax, threshold=6.0)
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    assert layer(x).shape == (2, 3, 5)
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=0, atol=0.1)
    assert not torch.equal(layer(x), Linear(weight)(x))


def test_a_query_without_keys_is_zero_and_masked_keys_are_never_read() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 3, 4, generator=generator) for _ in range(3))
    allowed = torch.tensor([[[False, False, False], [True, False, False], [True, False, True]]])
    key[:, :, 1], value[:, :, 1] = float("nan"), float("inf")
    out = attention(query, key, value, allowed, 0.5)
    assert (out[:, :, 0] == 0).all()
    assert torch.equal(out[:, :, 1], value[:, :, 0])
    assert out.isfinite().all()


def test_a_window_of_one_sees_the_token_itself() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[0]).eval()
    full = describe(model)
    narrow = replace(full, layers=tuple(replace(layer, window=1) for layer in full.layers))
    hidden = torch.randn(1, 4, 32)
    cos, sin = model.model.rotary_emb(hidden, torch.arange(4)[None])

    def run(decoder: Decoder, part: slice) -> torch.Tensor:
        keys, values = ([torch.zeros(1, 2, 4, 8) for _ in decoder.layers] for _ in range(2))
        return forward(decoder, hidden[:, part], cos[:, part], sin[:, part], keys, values, 0)[0]

    assert torch.equal(run(narrow, slice(0, 4))[:, 2:3], run(full, slice(2, 3)))
    assert not torch.equal(run(narrow, slice(0, 4)), run(full, slice(0, 4)))
