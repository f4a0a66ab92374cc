"""What users do with a model that transformers loads as int8: heads, experts, casts, offload, uploads."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM as CausalLM

import tiny
from agreement.cases import same_bits
from llmint8 import CheckpointError, Int8Config, QuantizationError, quantize_model, set_threshold
from llmint8.checkpoint import inspect_checkpoint
from llmint8.nn import INT8_MODULES, Int8Embedding, Int8Experts, Int8Linear
from zoo import TOKENS, ZOO

MIXTURES = ("mixtral", "gpt_oss")
CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}
LAYERS = ("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `float` and `int8`, the latter in shards."""
    folder = tmp_path_factory.mktemp(request.param)
    ZOO[request.param].build().save_pretrained(folder / "float")
    model = CausalLM.from_pretrained(folder / "float", quantization_config=Int8Config())
    model.save_pretrained(folder / "int8", max_shard_size="20KB")
    return folder


def keys(folder: Path) -> set[str]:
    return set(inspect_checkpoint(folder).tensors)


def test_an_expert_is_stored_as_a_layer_or_fused(mixture: Path) -> None:
    stored = keys(mixture / "int8")
    assert len(list((mixture / "int8").glob("*.safetensors"))) > 1
    if mixture.name.startswith("mixtral"):
        expert = "model.layers.0.block_sparse_moe.experts.3.w1"
        assert {f"{expert}.weight", f"{expert}.SCB"} <= stored
        assert not any(key.endswith("_SCB") for key in stored)
    else:
        experts = "model.layers.0.mlp.experts.down_proj"
        assert {experts, f"{experts}_SCB", f"{experts}_bias"} <= stored


def test_experts_from_disk_and_saved_again(mixture: Path, tmp_path: Path) -> None:
    want = CausalLM.from_pretrained(mixture / "int8")(TOKENS).logits
    device_map = dict.fromkeys(LAYERS, "cpu") | {"model.layers.0": "disk"}
    offloaded = CausalLM.from_pretrained(
        mixture / "int8", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert same_bits(offloaded(TOKENS).logits, want)
    auto = CausalLM.from_pretrained(mixture / "int8", device_map="auto")
    auto.save_pretrained(tmp_path / "again")
    assert keys(tmp_path / "again") == keys(mixture / "int8")
    assert same_bits(CausalLM.from_pretrained(tmp_path / "again")(TOKENS).logits, want)


def test_a_mixture_back_in_floats(mixture: Path, tmp_path: Path) -> None:
    model = CausalLM.from_pretrained(mixture / "int8").dequantize()
    assert not any(isinstance(m, INT8_MODULES) for m in model.modules())
    model.save_pretrained(tmp_path)
    assert keys(tmp_path) == keys(mixture / "float")
    assert same_bits(CausalLM.from_pretrained(tmp_path)(TOKENS).logits, model(TOKENS).logits)


def test_the_threshold_reaches_experts_and_file(mixture: Path, tmp_path: Path) -> None:
    model = CausalLM.from_pretrained(mixture / "int8")
    set_threshold(model, "auto")
    model.save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path)
    layers = [m for m in again.modules() if isinstance(m, (Int8Linear, Int8Experts))]
    assert {layer.threshold for layer in layers} == {"auto"}
    assert same_bits(again(TOKENS).logits, model(TOKENS).logits)


def test_a_weight_of_an_expert_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = ZOO["mixtral"].build()
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.experts\.down_proj\[2\] holds a NaN"):
        CausalLM.from_pretrained(tmp_path, quantization_config=Int8Config())
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.experts\.down_proj\[2\] holds a NaN"):
        quantize_model(model)


def test_fused_experts_without_scales_are_named(tmp_path: Path) -> None:
    model = ZOO["gpt_oss"].build()
    quantize_model(model)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = "model.layers.0.mlp.experts.down_proj_SCB"
    for spoilt, message in (
        ({k: t for k, t in tensors.items() if k != key}, f"{key} is missing"),
        (tensors | {key: tensors[key][:, :3].contiguous()}, rf"{key} is F32 \[4, 3\]"),
        (tensors | {key: -tensors[key]}, "SCB holds a negative"),
    ):
        save_file(spoilt, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            CausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("how", ["on the fly", "in memory"])
def test_int8_head_and_embeddings(how: str, tied: bool, tmp_path: Path) -> None:
    config = Int8Config(quantize_head=True, quantize_embeddings=True)
    source = tiny.tiny_llama(tie_word_embeddings=tied)
    source.save_pretrained(tmp_path / "float")
    quantize_model(source, config)
    model = source
    if how == "on the fly":
        model = CausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
        assert same_bits(model(TOKENS).logits, source(TOKENS).logits)
    model.save_pretrained(tmp_path / "int8")
    assert ("lm_head.weight" in keys(tmp_path / "int8")) is not tied
    assert ("lm_head.SCB" in keys(tmp_path / "int8")) is not tied
    again, info = CausalLM.from_pretrained(tmp_path / "int8", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(again.lm_head, Int8Linear)
    assert isinstance(again.get_input_embeddings(), Int8Embedding)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
    assert same_bits(again(TOKENS).logits, source(TOKENS).logits)
    half = CausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float16)
    assert half(TOKENS).logits.dtype == torch.float16
    with pytest.raises(TypeError, match="Int8Embedding"):
        again.resize_token_embeddings(300)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_casts_of_a_loaded_model(name: str, cast: str, tmp_path: Path) -> None:
    """`.half()` is what `.to(torch.float16)` is: codes and scales stay."""
    ZOO[name].build().save_pretrained(tmp_path)
    model = CausalLM.from_pretrained(tmp_path, quantization_config=Int8Config())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    moved, called = copy.deepcopy(model).to(CASTS[cast]), getattr(copy.deepcopy(model), cast)()
    for key, tensor in called.state_dict().items():
        fixed = key.endswith(("SCB", "weight_format")) or before[key].dtype == torch.int8
        assert tensor.dtype == (before[key].dtype if fixed else CASTS[cast]), key
        assert not fixed or torch.equal(tensor, before[key])
    assert called(TOKENS).logits.dtype == CASTS[cast]
    assert same_bits(called(TOKENS).logits, moved(TOKENS).logits)
    assert model.dtype == torch.float32  # the copies were cast, not their source


@pytest.mark.parametrize("stored", ["float", "int8"])
def test_a_new_head_starts_as_transformers_starts_it(stored: str, tmp_path: Path) -> None:
    source = tiny.tiny_llama()
    source.save_pretrained(tmp_path / "float")
    quantize_model(source)
    source.save_pretrained(tmp_path / "int8")
    config = None if stored == "int8" else Int8Config()
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / stored, quantization_config=config, output_loading_info=True, num_labels=50
    )
    assert info["missing_keys"] == {"score.weight"}
    assert type(model.score) is nn.Linear
    assert 0.2 < model.score.weight.std().item() < 0.4  # the initializer_range of the tiny Llama is 0.3
    assert model.score.weight.requires_grad
    for key, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, source.model.state_dict()[key]), key


def test_the_upload_is_what_saving_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.tiny_llama()
    quantize_model(model)
    model.save_pretrained(tmp_path / "saved")
    uploaded: dict[str, bytes] = {}

    def upload(_: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        uploaded.update({file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()})

    monkeypatch.setattr(transformers.PreTrainedModel, "_upload_modified_files", upload)
    hub = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    card = SimpleNamespace(save=lambda _: None)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda *_, **__: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    model.push_to_hub("nobody/tiny")
    for file in ("config.json", "model.safetensors"):
        assert uploaded[file] == (tmp_path / "saved" / file).read_bytes()
    assert json.loads(uploaded["config.json"])["quantization_config"]["quant_method"] == "llmint8"


def test_skip_modules_add_to_the_default(tmp_path: Path) -> None:
    ZOO["mixtral"].build().save_pretrained(tmp_path / "float")
    config = Int8Config(skip_modules=["layers.0.mlp"])
    model = CausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.layers[0].mlp.experts).__name__ == "MixtralExperts"
    assert isinstance(model.model.layers[1].mlp.experts, Int8Experts)
    model.save_pretrained(tmp_path / "int8")
    again = CausalLM.from_pretrained(tmp_path / "int8")
    assert same_bits(again(TOKENS).logits, model(TOKENS).logits)


def test_the_footprint_is_that_of_the_tensors(mixture: Path) -> None:
    model = CausalLM.from_pretrained(mixture / "int8")
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert model.get_memory_footprint() == held
    assert held < 0.45 * CausalLM.from_pretrained(mixture / "float").get_memory_footprint()
