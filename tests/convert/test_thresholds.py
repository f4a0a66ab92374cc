"""Thresholds of single layers: every way to a model sets the same ones, and what is saved says them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import tiny
from agreement.cases import same_bits
from llmint8 import (
    ConfigError,
    Int8Config,
    convert_checkpoint,
    optimize_for_inference,
    quantize_model,
    set_threshold,
)
from llmint8.integrations import bitsandbytes
from llmint8.nn import Int8Experts, Int8Linear

TOKENS = torch.arange(20)[None]
CONFIG = Int8Config(2.0, ["k_proj"], module_thresholds={"layers.0.mlp": 0, "down_proj": "auto"})


def thresholds(model: nn.Module) -> dict[str, Any]:
    return {n: m.threshold for n, m in model.named_modules() if isinstance(m, (Int8Linear, Int8Experts))}


def expected(model: nn.Module, config: Int8Config) -> dict[str, Any]:
    return {name: config.threshold_of(name) for name in thresholds(model)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_checkpoint(tmp_path_factory.mktemp("float"))


def in_memory(source: Path, _: Path) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(source)
    quantize_model(model, CONFIG)
    return model


def on_the_fly(source: Path, _: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(source, quantization_config=CONFIG)


def saved_and_loaded(source: Path, folder: Path) -> nn.Module:
    in_memory(source, folder).save_pretrained(folder / "saved")
    return AutoModelForCausalLM.from_pretrained(folder / "saved")


def streamed(source: Path, folder: Path) -> nn.Module:
    convert_checkpoint(source, folder / "streamed", CONFIG)
    return AutoModelForCausalLM.from_pretrained(folder / "streamed")


def through_accelerate(source: Path, folder: Path) -> nn.Module:
    from llmint8.integrations.accelerate import empty_int8_model

    convert_checkpoint(source, folder / "streamed", CONFIG)
    with accelerate.init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "streamed"))
    empty_int8_model(model, folder / "streamed")
    return accelerate.load_checkpoint_and_dispatch(model, folder / "streamed", {"": "cpu"}).eval()


def set_later(source: Path, _: Path) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=Int8Config("auto", ["k_proj"], module_thresholds={"layers.1": 3})
    )
    set_threshold(model, 2.0)
    set_threshold(model, "auto", ["down_proj"])
    set_threshold(model, 0, ["layers.0.mlp"])
    return model


WAYS = in_memory, on_the_fly, saved_and_loaded, streamed, through_accelerate, set_later


@pytest.mark.parametrize("load", WAYS, ids=lambda way: way.__name__)
def test_every_way_sets_the_thresholds_and_saves_them(
    source: Path, tmp_path: Path, load: Callable[[Path, Path], Any]
) -> None:
    model = load(source, tmp_path)
    got = thresholds(model)
    assert got == expected(model, CONFIG)
    assert got["model.layers.0.mlp.down_proj"] == 0  # the first pattern decides
    assert got["model.layers.1.mlp.down_proj"] == "auto"
    assert got["model.layers.1.mlp.up_proj"] == 2
    want = in_memory(source, tmp_path)(TOKENS).logits
    assert same_bits(model(TOKENS).logits, want)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert thresholds(again) == got
    assert again.config.quantization_config == CONFIG
    assert same_bits(again(TOKENS).logits, want)


def test_a_threshold_decides_what_a_layer_computes(source: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=Int8Config(0))
    layer, x = model.model.layers[0].mlp.down_proj, torch.randn(3, 48)
    plain = layer(x)
    set_threshold(model, 0.1, ["down_proj"])
    assert not same_bits(layer(x), plain)


def test_experts_have_thresholds_of_their_own() -> None:
    model = tiny.tiny_mixture()
    quantize_model(model, Int8Config(6.0, module_thresholds={"layers.1.mlp.experts": "auto"}))
    experts = {n: m.threshold for n, m in model.named_modules() if isinstance(m, Int8Experts)}
    assert experts == {"model.layers.0.mlp.experts": 6.0, "model.layers.1.mlp.experts": "auto"}


def test_a_pattern_that_names_no_int8_layer_changes_nothing(source: Path, tmp_path: Path) -> None:
    for pattern in ("no_such_layer", "lm_head", "embed_tokens", "k_proj", "norm"):
        config = Int8Config(6.0, ["k_proj"], module_thresholds={"down_proj": 0, pattern: "auto"})
        message = f"module_thresholds: '{pattern}' matches no int8 layer; names look like 'model.layers.0"
        model = tiny.tiny_llama()
        with pytest.raises(ConfigError, match=message):
            quantize_model(model, config)
        assert not thresholds(model)
        with pytest.raises(ConfigError, match=message):
            AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
        with pytest.raises(ConfigError, match=message):
            convert_checkpoint(source, tmp_path / "out", config)
        quantize_model(model, Int8Config(6.0, ["k_proj"]))
        with pytest.raises(ConfigError, match=message):
            set_threshold(model, 0, ["down_proj", pattern])
        assert set(thresholds(model).values()) == {6.0}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["down_proj", [], [1], [""]])
def test_patterns_are_a_list_of_names(bad: Any) -> None:
    model = tiny.tiny_llama()
    quantize_model(model)
    before = thresholds(model)
    with pytest.raises(ConfigError):
        set_threshold(model, 0, bad)
    assert thresholds(model) == before


def test_embeddings_have_no_threshold_and_heads_have() -> None:
    model = tiny.tiny_llama(tie_word_embeddings=True)
    quantize_model(
        model,
        Int8Config(quantize_head=True, quantize_embeddings=True, module_thresholds={"lm_head": 0}),
    )
    assert model.lm_head.threshold == 0
    with pytest.raises(ConfigError, match="'embed_tokens' matches no int8 layer"):
        set_threshold(model, 0, ["embed_tokens"])


def test_a_head_that_becomes_int8_later_has_the_threshold_of_the_configuration() -> None:
    model = tiny.tiny_llama()
    quantize_model(model, CONFIG)
    optimize_for_inference(model, head="int8")
    assert model.lm_head.threshold == 2.0
    assert thresholds(model) == expected(model, CONFIG)


@pytest.mark.parametrize("format", ["bitsandbytes", "compressed-tensors"])
def test_other_formats_cannot_say_it(source: Path, tmp_path: Path, format: str) -> None:
    with pytest.raises(ConfigError, match=f"the format {format} knows no thresholds of single layers; write"):
        convert_checkpoint(
            source, tmp_path / "out", Int8Config(6.0, module_thresholds={"q_proj": 0}), format=format
        )


def test_a_model_in_the_format_of_bitsandbytes_is_saved_in_ours_from_then_on(
    source: Path, tmp_path: Path
) -> None:
    with bitsandbytes.enabled():
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=3.0)
        model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
    set_threshold(model, 4.0)
    assert model.config.quantization_config.llm_int8_threshold == 4.0
    set_threshold(model, "auto", ["down_proj"])
    assert set(thresholds(model).values()) == {4.0, "auto"}
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["quant_method"] == "llmint8"
    assert saved["module_thresholds"] == [["down_proj", "auto"]]
    assert thresholds(AutoModelForCausalLM.from_pretrained(tmp_path)) == thresholds(model)
