"""The output head in int8: what becomes of it, of a tied embedding, and of a checkpoint."""

from pathlib import Path

import pytest
import torch
import transformers

import tiny
from fast.models import build, counting, tokens
from llmint8 import Int8Config, Int8Embedding, Int8Linear, QuantizationError, optimize_for_inference
from llmint8.fast import fast_path

IDS = tokens(2, 6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_head_becomes_int8_and_is_saved(tied: bool, loaded: bool, tmp_path: Path) -> None:
    load = transformers.AutoModelForCausalLM.from_pretrained
    if loaded:
        tiny.save_tiny_checkpoint(tmp_path / "float", tie_word_embeddings=tied)
        model = load(tmp_path / "float", quantization_config=Int8Config("auto"))
    else:
        model = build("Llama", tie_word_embeddings=tied)
    threshold = model.model.layers[0].mlp.up_proj.threshold
    optimize_for_inference(model, head="int8")
    assert type(model.lm_head) is Int8Linear
    assert model.lm_head.threshold == threshold
    assert (type(model.model.embed_tokens) is Int8Embedding) == tied
    if tied:
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.SCB is model.model.embed_tokens.SCB
    assert fast_path(model).head == "int8"
    with torch.no_grad(), counting(model) as calls:
        expected = model(IDS).logits
    assert calls == [6]

    model.save_pretrained(tmp_path / "int8")
    again = load(tmp_path / "int8")
    assert again.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, expected, rtol=1e-5, atol=2e-5)
        assert torch.equal(optimize_for_inference(again)(IDS).logits, expected)


def test_an_int8_head_stays() -> None:
    model = optimize_for_inference(build("Llama"), head="int8")
    weight = model.lm_head.weight
    assert optimize_for_inference(model, head="int8").lm_head.weight is weight


def test_a_model_without_a_head() -> None:
    with pytest.raises(QuantizationError, match='no output head; use head="keep"'):
        optimize_for_inference(build("Llama").model, head="int8")
