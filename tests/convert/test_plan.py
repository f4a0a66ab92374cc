"""Which modules become int8 in each kind of model, and the reason for every one that does not."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn

import tiny
from llmint8 import ConfigError, QuantizationError, quantize_model
from llmint8.convert import check_skip_modules, plan_conversion

EMBEDDING = "embedding: looked up, not multiplied"


def skipped(model: nn.Module, *patterns: str) -> dict[str, str]:
    return {row.name: row.decision for row in plan_conversion(model, patterns).skipped}


def linear_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_llama() -> None:
    model = tiny.tiny_llama()
    assert skipped(model) == {"model.embed_tokens": EMBEDDING, "lm_head": "output head"}
    assert set(plan_conversion(model, None).convert) == linear_names(model) - {"lm_head"}


def test_a_tied_head_stays() -> None:
    model = tiny.tiny_llama(tie_word_embeddings=True)
    assert skipped(model) == {"model.embed_tokens": EMBEDDING, "lm_head": "output head"}


def test_gpt2() -> None:
    model = tiny.tiny_gpt2()
    assert skipped(model) == {
        "transformer.wte": EMBEDDING,
        "transformer.wpe": EMBEDDING,
        "lm_head": "output head",
    }
    assert len(plan_conversion(model, None).convert) == 8


def test_the_head_of_a_classifier_stays() -> None:
    model = tiny.tiny_classifier()
    decisions = skipped(model)
    assert decisions.pop("classifier") == "output head"
    assert set(decisions.values()) == {EMBEDDING}
    assert "bert.pooler.dense" in plan_conversion(model, None).convert


def test_encoder_and_decoder() -> None:
    model = tiny.tiny_t5()
    decisions = skipped(model)
    assert decisions.pop("lm_head") == "output head"
    assert set(decisions.values()) == {EMBEDDING}
    assert set(plan_conversion(model, None).convert) == linear_names(model) - {"lm_head"}


def test_opt_projections_become_int8() -> None:
    model = tiny.tiny_opt()
    assert {"model.decoder.project_in", "model.decoder.project_out"} <= set(
        plan_conversion(model, None).convert
    )
    assert skipped(model)["lm_head"] == "output head"


def test_fused_experts_become_int8() -> None:
    model = tiny.tiny_mixture()
    decisions, convert = skipped(model), plan_conversion(model, None).convert
    for index in range(2):
        assert f"model.layers.{index}.mlp.experts" in convert
        assert decisions[f"model.layers.{index}.mlp.gate"] == "MixtralTopKRouter is not a linear layer"


def test_every_matrix_is_either_converted_or_skipped() -> None:
    for build in (tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_t5, tiny.tiny_mixture, tiny.tiny_classifier):
        model = build()
        plan = plan_conversion(model, None)
        owners = {
            name
            for name, module in model.named_modules()
            if any(p.dim() > 1 for p in module.parameters(recurse=False))
        }
        assert sorted([*plan.convert, *(row.name for row in plan.skipped)]) == sorted(owners)


def test_the_plan_needs_no_data() -> None:
    with torch.device("meta"):
        model = tiny.LlamaForCausalLM(tiny.tiny_llama().config)
    assert plan_conversion(model, None) == plan_conversion(tiny.tiny_llama(), None)


class Own(nn.Linear):
    pass


def convolution() -> nn.Module:
    return nn.Conv1d(3, 3, 3)


def hooked(register: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = nn.Linear(3, 3)
        getattr(layer, register)(lambda *_: None)
        return layer

    return build


def offloaded() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer._hf_hook = object()  # where accelerate keeps the hook that moves a layer between devices
    return layer


HOOKS = "carries hooks, which a replacement would lose"
REASONS = {
    "subclass": (lambda: Own(3, 3), "Own is a subclass of nn.Linear with a forward of its own"),
    "convolution": (convolution, "Conv1d is not a linear layer"),
    "bilinear": (
        lambda: nn.Bilinear(3, 3, 3),
        "Bilinear holds weights of three dimensions outside of transformers' experts interface",
    ),
    "too wide": (
        lambda: nn.Linear(131_073, 1, device="meta"),
        "131073 input features exceed 131072: int32 sums could overflow",
    ),
    "forward hook": (hooked("register_forward_hook"), HOOKS),
    "forward pre-hook": (hooked("register_forward_pre_hook"), HOOKS),
    "backward hook": (hooked("register_full_backward_hook"), HOOKS),
    "backward pre-hook": (hooked("register_full_backward_pre_hook"), HOOKS),
    "offload hook": (offloaded, HOOKS),
    "embedding": (lambda: nn.Embedding(3, 3), EMBEDDING),
}


@pytest.mark.parametrize(("build", "reason"), REASONS.values(), ids=REASONS)
def test_reasons(build: Callable[[], nn.Module], reason: str) -> None:
    assert skipped(nn.Sequential(nn.Linear(2, 2), build())) == {"1": reason}


def test_weights_that_layers_share_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert skipped(model) == {"0": "weight tied to 2", "2": "weight tied to 0"}


def test_parametrised_and_weight_normed_layers_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.utils.parametrizations.weight_norm(model[1])
    assert plan_conversion(model, None).convert == ("0",)
    assert skipped(model)["1.parametrizations.weight"] == "ParametrizationList is not a linear layer"


def test_torch_attention_and_encoder_layers_stay_and_still_work() -> None:
    """Both hand the weights of their layers to fused kernels, which would read codes as weights."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoder(layer, 1)).eval()
    decisions = skipped(model)
    past = "TransformerEncoderLayer reads the weight past the layer"
    assert decisions["1.layers.0.linear1"] == decisions["1.layers.0.linear2"] == past
    assert decisions["1.layers.0.self_attn"] == "MultiheadAttention is not a linear layer"
    quantize_model(model)
    with torch.inference_mode():
        assert model(torch.randn(2, 5, 16)).shape == (2, 5, 16)


def test_weights_that_a_model_rescales_in_place_stay() -> None:
    settings = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 8}
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**settings)).eval()
    past = "RwkvModel reads the weight past the layer"
    decisions = skipped(model)
    assert (
        decisions["rwkv.blocks.0.attention.output"] == decisions["rwkv.blocks.0.feed_forward.value"] == past
    )
    quantize_model(model)
    with torch.inference_mode():
        assert model(torch.arange(4)[None]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("down_proj", 2),
        ("mlp.down_proj", 2),
        ("model.layers.1", 7),
        ("layers.1.mlp", 3),
        ("model", 14),
        ("model.layers.0.mlp.up_proj", 1),
    ],
)
def test_patterns_name_whole_parts(pattern: str, count: int) -> None:
    model = tiny.tiny_llama()
    decisions = skipped(model, pattern)
    by_pattern = [name for name, reason in decisions.items() if reason == f"skip_modules: {pattern}"]
    assert len(linear_names(model) & set(by_pattern)) == count


@pytest.mark.parametrize(
    "pattern", ["down", "own_proj", "layer", "model.layers.2", ".", "down_pro?", "Model"]
)
def test_a_pattern_that_names_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"matches no module; names look like 'model\.layers\.0"):
        check_skip_modules(tiny.tiny_llama(), ["down_proj", pattern])


def test_nothing_to_convert_says_why() -> None:
    with pytest.raises(QuantizationError, match="nothing to convert: Own is a subclass"):
        quantize_model(nn.Sequential(Own(3, 3)))
    with pytest.raises(QuantizationError, match="it has no linear layer"):
        quantize_model(nn.Sequential(nn.ReLU()))
    with pytest.raises(QuantizationError, match=r"use Int8Linear\.from_linear"):
        quantize_model(nn.Linear(3, 3))
