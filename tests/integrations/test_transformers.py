"""Loading through transformers: on the fly, saved and loaded again, in every dtype, and what is broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from agreement.cases import same_bits
from llmint8 import (
    CheckpointError,
    ConfigError,
    Int8Config,
    Int8Linear,
    LLMInt8Error,
    QuantizationError,
    quantize_model,
)
from llmint8.nn import INT8_MODULES

TOKENS = torch.arange(20)[None]
LAYER = "model.layers.0.self_attn.q_proj"
CausalLM = transformers.AutoModelForCausalLM

FAMILIES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, torch.Tensor]]] = {
    "llama": (tiny.tiny_llama, CausalLM, {}),
    "llama, tied": (lambda: tiny.tiny_llama(tie_word_embeddings=True), CausalLM, {}),
    "gpt2": (tiny.tiny_gpt2, CausalLM, {}),
    "opt": (tiny.tiny_opt, CausalLM, {}),
    "mixtral": (tiny.tiny_mixture, CausalLM, {}),
    "t5": (tiny.tiny_t5, transformers.AutoModelForSeq2SeqLM, {"decoder_input_ids": TOKENS[:, :7]}),
    "bert": (tiny.tiny_classifier, transformers.AutoModelForSequenceClassification, {}),
}


def assert_same_model(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_checkpoint(tmp_path_factory.mktemp("float"))


@pytest.fixture(scope="module")
def saved(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    CausalLM.from_pretrained(source, quantization_config=Int8Config()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("build", "auto", "extra"), FAMILIES.values(), ids=FAMILIES)
def test_three_ways_give_the_same_bits(
    tmp_path: Path, build: Callable[[], Any], auto: Any, extra: dict[str, torch.Tensor]
) -> None:
    """Converted in memory; on the fly; either of them saved and loaded again."""
    build().save_pretrained(tmp_path / "float")
    converted = auto.from_pretrained(tmp_path / "float")
    report = quantize_model(converted)
    loaded = auto.from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    assert_same_model(loaded, converted)
    want = converted(TOKENS, **extra).logits
    assert same_bits(loaded(TOKENS, **extra).logits, want)
    for name, model in {"converted": converted, "loaded": loaded}.items():
        model.save_pretrained(tmp_path / name)
        again, info = auto.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_same_model(again, converted)
        assert same_bits(again(TOKENS, **extra).logits, want)
        int8 = {name for name, module in again.named_modules() if isinstance(module, INT8_MODULES)}
        assert int8 == {row.name for row in report.converted}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, "auto"], ids=str)
@pytest.mark.parametrize("device_map", [None, "cpu", "auto"])
def test_dtypes_and_device_maps(source: Path, tmp_path: Path, dtype: Any, device_map: str | None) -> None:
    model = CausalLM.from_pretrained(
        source, quantization_config=Int8Config(), dtype=dtype, device_map=device_map
    )
    want = CausalLM.from_pretrained(source, dtype=dtype)
    quantize_model(want)
    assert_same_model(model, want)
    model.save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path, dtype="auto", device_map=device_map)
    assert_same_model(again, want)
    assert same_bits(again(TOKENS).logits, want(TOKENS).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_saved_model_loads_in_another_dtype(saved: Path, dtype: torch.dtype) -> None:
    model, as_saved = CausalLM.from_pretrained(saved, dtype=dtype), CausalLM.from_pretrained(saved)
    for name, tensor in model.state_dict().items():
        codes_or_scales = name.endswith((".SCB", ".weight_format")) or tensor.dtype == torch.int8
        assert tensor.dtype == (as_saved.state_dict()[name].dtype if codes_or_scales else dtype)
        if codes_or_scales:
            assert torch.equal(tensor, as_saved.state_dict()[name])
    assert model(TOKENS).logits.dtype == dtype


def test_shards(source: Path, saved: Path, tmp_path: Path) -> None:
    want = CausalLM.from_pretrained(saved)
    for name, model in {"float": CausalLM.from_pretrained(source), "int8": want}.items():
        model.save_pretrained(tmp_path / name, max_shard_size="30KB")
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
    on_the_fly = CausalLM.from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    assert_same_model(on_the_fly, want)
    assert_same_model(CausalLM.from_pretrained(tmp_path / "int8"), want)


def test_a_saved_model_loads_from_disk_offload(saved: Path, tmp_path: Path) -> None:
    names = ("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    device_map = dict.fromkeys(names, "cpu") | {"model.layers.0": "disk"}
    model = CausalLM.from_pretrained(saved, device_map=device_map, offload_folder=tmp_path)
    assert same_bits(model(TOKENS).logits, CausalLM.from_pretrained(saved)(TOKENS).logits)


def test_generating_gives_the_same_tokens_each_way(source: Path, saved: Path) -> None:
    converted = CausalLM.from_pretrained(source)
    quantize_model(converted)
    models = (converted, CausalLM.from_pretrained(source, quantization_config=Int8Config()))
    texts = [m.generate(TOKENS, max_new_tokens=9, do_sample=False) for m in models]
    texts.append(CausalLM.from_pretrained(saved).generate(TOKENS, max_new_tokens=9, do_sample=False))
    assert texts[0].shape == (1, 29)
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


def test_settings_reach_the_layers_and_the_file(source: Path, tmp_path: Path) -> None:
    config = Int8Config("auto", ["down_proj", "layers.1"])
    model = CausalLM.from_pretrained(source, quantization_config=config)
    int8 = {name: m.threshold for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    assert len(int8) == 6
    assert set(int8.values()) == {"auto"}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == config.to_dict()
    again = CausalLM.from_pretrained(tmp_path)
    assert {n: m.threshold for n, m in again.named_modules() if isinstance(m, Int8Linear)} == int8


def test_a_base_model_and_a_whole_one_load_each_other(source: Path, saved: Path, tmp_path: Path) -> None:
    whole, base = CausalLM.from_pretrained(saved), transformers.AutoModel.from_pretrained(saved)
    assert_same_model(base, whole.model)
    transformers.AutoModel.from_pretrained(source, quantization_config=Int8Config()).save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path)  # with a head drawn at random: the file has none
    assert_same_model(again.model, whole.model)
    assert torch.isfinite(again(TOKENS).logits).all()


def test_what_is_stored_decides_what_is_int8(saved: Path, tmp_path: Path) -> None:
    """A checkpoint loads by its headers, even if its layers were chosen by another rule."""
    whole = CausalLM.from_pretrained(saved)
    whole.lm_head = Int8Linear.from_linear(whole.lm_head)
    up = whole.model.layers[0].mlp.up_proj
    whole.model.layers[0].mlp.up_proj = up.to_float_layer()
    whole.save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path)
    assert_same_model(again, whole)
    assert same_bits(again(TOKENS).logits, whole(TOKENS).logits)


def test_casts_of_a_loaded_model_leave_the_scales(saved: Path) -> None:
    model, want = CausalLM.from_pretrained(saved).to(torch.bfloat16), CausalLM.from_pretrained(saved)
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            assert same_bits(module.SCB, want.get_submodule(name).SCB)
    assert model(TOKENS).logits.dtype == torch.bfloat16


def test_dequantize(saved: Path, tmp_path: Path) -> None:
    model = CausalLM.from_pretrained(saved).dequantize()
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    model.save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path)
    assert again.config.to_dict().get("quantization_config") is None
    assert same_bits(again(TOKENS).logits, model(TOKENS).logits)


def spoilt(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    return target


def drop(*keys: str) -> Callable[[dict], None]:
    return lambda tensors: [tensors.pop(f"{LAYER}.{key}") for key in keys]


def put(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], None]:
    return lambda tensors: tensors.update({f"{LAYER}.{key}": change(tensors[f"{LAYER}.{key}"])})


def first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.view(-1).index_fill(0, torch.tensor([0]), value).view(t.shape)


INT8_FILES = {
    "no SCB": (drop("SCB"), "SCB is missing"),
    "no weight": (drop("weight"), "weight is missing"),
    "nothing": (drop("weight", "SCB", "weight_format"), "weight is missing in the checkpoint"),
    "short SCB": (put("SCB", lambda t: t[:5]), "SCB is F32 [5]"),
    "half SCB": (put("SCB", lambda t: t.half()), "SCB is F16"),
    "NaN in SCB": (put("SCB", first(float("nan"))), "SCB holds a negative or non-finite value"),
    "negative SCB": (put("SCB", first(-1.0)), "SCB holds a negative or non-finite value"),
    "tiled": (put("weight_format", first(2)), "weight_format is 2"),
    "-128": (put("weight", first(-128)), "weight holds the code -128"),
}


@pytest.mark.parametrize(("change", "message"), INT8_FILES.values(), ids=INT8_FILES)
def test_a_spoilt_int8_checkpoint_is_named(saved: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        CausalLM.from_pretrained(spoilt(saved, tmp_path / "x", change))
    assert message in str(error.value)
    assert LAYER in str(error.value)
    assert "convert the model again" in str(error.value)
    assert "\n" not in str(error.value)


FLOAT_FILES = {
    "NaN": (put("weight", first(float("nan"))), QuantizationError, "weight holds a NaN or an infinity"),
    "infinity": (put("weight", first(float("inf"))), QuantizationError, "weight holds a NaN or an infinity"),
    "no weight": (drop("weight"), CheckpointError, "weight is missing in the checkpoint"),
    "other K": (put("weight", lambda t: t[:, :9]), CheckpointError, "weight is [32, 9], not [32, 32]"),
}


@pytest.mark.parametrize(("change", "kind", "message"), FLOAT_FILES.values(), ids=FLOAT_FILES)
def test_a_spoilt_float_checkpoint_is_named(
    source: Path, tmp_path: Path, change: Any, kind: type[LLMInt8Error], message: str
) -> None:
    with pytest.raises(kind) as error:
        CausalLM.from_pretrained(spoilt(source, tmp_path / "x", change), quantization_config=Int8Config())
    assert message in str(error.value)
    assert LAYER in str(error.value)


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    tiny.tiny_gpt2().save_pretrained(tmp_path / "float")
    name = "transformer.h.0.mlp.c_fc.bias"
    folder = spoilt(tmp_path / "float", tmp_path / "x", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        CausalLM.from_pretrained(folder, quantization_config=Int8Config())


def test_no_weight_format_means_row_major(saved: Path, tmp_path: Path) -> None:
    model = CausalLM.from_pretrained(spoilt(saved, tmp_path / "x", drop("weight_format")))
    assert_same_model(model, CausalLM.from_pretrained(saved))


def test_a_pattern_that_matches_nothing_is_an_error(source: Path) -> None:
    with pytest.raises(ConfigError, match="'no_such_layer' matches no module"):
        CausalLM.from_pretrained(source, quantization_config=Int8Config(skip_modules=["no_such_layer"]))


def test_quantising_into_an_offload_folder_is_refused(source: Path, tmp_path: Path) -> None:
    device_map = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(QuantizationError, match="cannot offload to disk: convert first"):
        CausalLM.from_pretrained(
            source, quantization_config=Int8Config(), device_map=device_map, offload_folder=tmp_path
        )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("threshold", -3, "threshold must be finite"), ("future_field", 1, "unknown field 'future_field'")],
)
def test_a_bad_configuration_in_the_file(
    saved: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    folder = spoilt(saved, tmp_path / "x", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        CausalLM.from_pretrained(folder)


def test_an_int8_model_is_not_converted_again(saved: Path) -> None:
    with pytest.raises(QuantizationError, match="int8 already"):
        quantize_model(CausalLM.from_pretrained(saved))
