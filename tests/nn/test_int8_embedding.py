"""`Int8Embedding`: rows, casts, state, and a head that shares its weight."""

import copy

import pytest
import torch
from torch import nn

import tiny
from agreement.cases import same_bits
from llmint8 import ConfigError, Int8Config, QuantizationError, dequantize_model, quantize_model, reference
from llmint8.nn import Int8Embedding, is_embedding

INDEX = torch.tensor([[0, 3, 3], [8, 1, 0]])
BOTH = Int8Config(quantize_head=True, quantize_embeddings=True)


def source() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(9, 17, padding_idx=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_row_is_codes_times_scale(dtype: torch.dtype) -> None:
    module = Int8Embedding.from_embedding(source()).to(dtype)
    codes, absmax = reference.quantize_weight(source().weight.detach())
    want = nn.functional.embedding(INDEX, reference.dequantize_weight(codes, absmax, dtype))
    assert same_bits(module(INDEX), want)
    assert module.SCB.dtype == torch.float32
    assert module.padding_idx == 2
    assert module(torch.zeros(0, 4, dtype=torch.int32)).shape == (0, 4, 17)


def test_there_and_back() -> None:
    module = Int8Embedding.from_embedding(source())
    back = module.to_float_layer()
    assert isinstance(back, nn.Embedding)
    assert back.padding_idx == 2
    assert same_bits(back(INDEX), module(INDEX))


def test_only_plain_embeddings() -> None:
    class Scaled(nn.Embedding):
        pass

    assert is_embedding(source())
    assert not is_embedding(Scaled(3, 3))
    assert not is_embedding(nn.Embedding(3, 3, max_norm=1.0))


def test_state_that_cannot_be_right_is_refused() -> None:
    module = Int8Embedding.from_embedding(source())
    with pytest.raises(RuntimeError, match="not int8"):
        module.load_state_dict(module.state_dict() | {"weight": source().weight})
    state = module.state_dict()
    del state["SCB"]
    with pytest.raises(RuntimeError, match="one is missing"):
        module.load_state_dict(state)


def test_a_weight_that_is_not_finite_is_named() -> None:
    bad = source()
    with torch.no_grad():
        bad.weight[1, 1] = torch.nan
    with pytest.raises(QuantizationError, match="table holds a NaN"):
        Int8Embedding.from_embedding(bad, "table")


def test_a_tied_head_shares_weight_and_scales() -> None:
    model = tiny.tiny_llama(tie_word_embeddings=True)
    report = quantize_model(model, BOTH)
    assert not report.skipped
    head, embedding = model.lm_head, model.model.embed_tokens
    assert head.weight is embedding.weight
    assert head.SCB is embedding.SCB
    state = model.state_dict()
    assert "lm_head.SCB" not in state
    logits = model(INDEX).logits
    twin = copy.deepcopy(model)
    assert twin.load_state_dict(state)
    assert same_bits(twin(INDEX).logits, logits)
    dequantize_model(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.model.embed_tokens, nn.Embedding)


@pytest.mark.parametrize("which", ["quantize_head", "quantize_embeddings"])
def test_one_of_a_tied_pair_alone_stays_float(which: str) -> None:
    model = tiny.tiny_llama(tie_word_embeddings=True)
    decisions = {row.name: row.decision for row in quantize_model(model, Int8Config(**{which: True})).skipped}
    assert "weight tied to" in " ".join(decisions.values())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_settings_are_booleans_and_travel() -> None:
    assert Int8Config.from_dict(BOTH.to_dict()) == BOTH
    assert "quantize_head" not in Int8Config().to_dict()
    with pytest.raises(ConfigError, match="quantize_head must be True or False"):
        Int8Config(quantize_head="yes")  # type: ignore[arg-type]
