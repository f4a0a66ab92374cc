"""Code and checkpoints made for bitsandbytes, in an environment that does not have it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig

import tiny
from agreement.cases import same_bits
from integrations.bitsandbytes_files import (
    CHECKPOINT,
    assert_same_state,
    assert_same_tensors,
    stored_tensors,
)
from llmint8 import CheckpointError, ConfigError, Int8Config, Int8Linear, set_threshold
from llmint8.convert import is_linear
from llmint8.integrations import bitsandbytes
from llmint8.nn import Int8Experts

TOKENS = torch.arange(20)[None]
CausalLM = transformers.AutoModelForCausalLM


def int8_layers(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}


def load(folder: Path, **settings: Any) -> Any:
    """The model, after a look at the keys that found no place."""
    model, info = CausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_checkpoint(tmp_path_factory.mktemp("float"))


def test_a_checkpoint_of_bitsandbytes_loads_whole() -> None:
    """Every tensor, bit for bit; de-quantised as bitsandbytes does, but for its rounding of 1/127."""
    model = load(CHECKPOINT)
    assert_same_tensors(model.state_dict(), stored_tensors())
    theirs = load_file(CHECKPOINT / "dequantised" / "dequantised.safetensors")
    layers = int8_layers(model)
    assert layers.keys() == theirs.keys()
    assert len(layers) == 6  # one block without down_proj; its config.json names the skipped modules
    for name, layer in layers.items():
        torch.testing.assert_close(layer.dequantize(), theirs[name], rtol=2**-22, atol=0)
        assert layer.threshold == 3.0
    assert torch.isfinite(model(TOKENS).logits).all()


def test_a_loaded_checkpoint_can_be_moved_cast_saved_and_loaded(tmp_path: Path) -> None:
    model = load(CHECKPOINT)
    assert model.dtype == torch.float16
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == json.loads((CHECKPOINT / "config.json").read_text())["quantization_config"]
    again = load(tmp_path)
    assert_same_state(again, model)
    assert same_bits(again(TOKENS).logits, model(TOKENS).logits)
    assert model.to("cpu").to(torch.bfloat16)(TOKENS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device_map", [None, "auto", "cpu", {"": "cpu"}], ids=str)
def test_dtype_is_that_of_everything_that_stays_float(dtype: torch.dtype, device_map: Any) -> None:
    state = load(CHECKPOINT, dtype=dtype, device_map=device_map).state_dict()
    floats = {n: t for n, t in state.items() if t.is_floating_point() and not n.endswith(".SCB")}
    assert {t.dtype for t in floats.values()} == {dtype}
    assert state["model.layers.0.self_attn.q_proj.SCB"].dtype == torch.float32


def test_a_pickled_checkpoint_loads_by_what_it_holds(source: Path, tmp_path: Path) -> None:
    """bitsandbytes drops its default skips for a list of skipped modules: then the head is int8 as well."""
    model = load(source, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    model.lm_head = Int8Linear.from_linear(model.lm_head)
    model.config.quantization_config.llm_int8_skip_modules = ["no_such_module"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_state(load(tmp_path), model)
    torch.save({"lm_head.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        CausalLM.from_pretrained(tmp_path)


def test_it_loads_from_disk_offload(tmp_path: Path) -> None:
    names = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    device_map = dict.fromkeys(names, "cpu") | {"model.layers": "disk"}
    model = load(CHECKPOINT, device_map=device_map, offload_folder=tmp_path)
    assert same_bits(model(TOKENS).logits, load(CHECKPOINT)(TOKENS).logits)


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "x")
    for file in (tmp_path / "x").glob("*.safetensors"):
        tensors = load_file(file)
        tensors.pop("model.layers.0.mlp.up_proj.SCB", None)
        save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.SCB is missing"):
        CausalLM.from_pretrained(tmp_path / "x")


@pytest.mark.parametrize("build", [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_opt])
def test_existing_code_gives_what_our_own_configuration_gives(tmp_path: Path, build: Any) -> None:
    build().save_pretrained(tmp_path / "float")
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = load(tmp_path / "float", quantization_config=config, device_map="auto")
    want = load(tmp_path / "float", quantization_config=Int8Config())
    assert_same_state(model, want)
    assert same_bits(model(TOKENS).logits, want(TOKENS).logits)
    assert model.is_loaded_in_8bit
    model.save_pretrained(tmp_path / "int8")
    again = load(tmp_path / "int8")
    assert_same_state(again, want)
    assert again.config.quantization_config.quant_method == "bitsandbytes"
    assert config.llm_int8_skip_modules is None  # the caller's object is not ours to change


def test_settings_are_honoured(source: Path, tmp_path: Path) -> None:
    """Skipped names are read as bitsandbytes reads them, and add to what stays float anyhow."""
    config = BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=4.5,
        llm_int8_skip_modules=["_proj", r"no\.such\.module"],
        llm_int8_enable_fp32_cpu_offload=True,
    )
    with pytest.raises(Exception, match="no int8 layer"):  # "_proj" ends the name of every linear layer
        set_threshold(load(source, quantization_config=config), 1.0)
    config.llm_int8_skip_modules = [
        "model.layers.0.mlp",
        "o_proj",
        r"model\.layers\.\d+\.self_attn\.[qk]_proj",
    ]
    model = load(source, quantization_config=config, device_map={"model": "cpu", "lm_head": "cpu"})
    expected = {"model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"}
    expected |= {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    layers = int8_layers(model)
    assert layers.keys() == expected
    assert {layer.threshold for layer in layers.values()} == {4.5}
    # A list makes bitsandbytes forget its defaults, so the file names every layer that stayed float.
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert set(saved["llm_int8_skip_modules"]) == {n for n, m in model.named_modules() if is_linear(m)}
    assert saved["llm_int8_threshold"] == 4.5
    assert_same_state(load(tmp_path), model)


def test_what_transformers_keeps_in_float32_stays_float(tmp_path: Path) -> None:
    """Readers with bitsandbytes build these layers as floats, whatever the file says."""
    tiny.tiny_t5().save_pretrained(tmp_path)
    auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)}
    assert linear == {"wo", "lm_head"}
    assert not any(name.endswith(".wo") for name in int8_layers(model))


def test_int8_experts_are_saved_in_the_format_that_has_them(tmp_path: Path) -> None:
    tiny.tiny_mixture().save_pretrained(tmp_path / "float")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)
    model = load(tmp_path / "float", quantization_config=config)
    assert any(isinstance(module, Int8Experts) for module in model.modules())
    model.save_pretrained(tmp_path / "int8")
    again = load(tmp_path / "int8")
    assert again.config.quantization_config == Int8Config(4.0)
    assert_same_state(again, model)
    assert same_bits(again(TOKENS).logits, model(TOKENS).logits)


def test_skipped_experts_leave_the_format_of_bitsandbytes(tmp_path: Path) -> None:
    tiny.tiny_mixture().save_pretrained(tmp_path / "float")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["experts"])
    model = load(tmp_path / "float", quantization_config=config)
    assert not any(isinstance(module, Int8Experts) for module in model.modules())
    assert int8_layers(model)
    model.save_pretrained(tmp_path / "int8")
    again = load(tmp_path / "int8")
    assert again.config.quantization_config.quant_method == "bitsandbytes"
    assert_same_state(again, model)


def test_the_threshold_of_a_saved_model(tmp_path: Path) -> None:
    model = load(CHECKPOINT)
    set_threshold(model, 5)
    model.save_pretrained(tmp_path / "5")
    again = load(tmp_path / "5")
    assert again.config.quantization_config.llm_int8_threshold == 5.0
    assert {layer.threshold for layer in int8_layers(again).values()} == {5.0}
    set_threshold(model, "auto")
    model.save_pretrained(tmp_path / "auto")
    again = load(tmp_path / "auto")
    assert again.config.quantization_config == Int8Config("auto")  # which bitsandbytes could not express
    assert_same_state(again, model)
    assert {layer.threshold for layer in int8_layers(again).values()} == {"auto"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"llm_int8_has_fp16_weight": True}, "leave it False, and train adapters"),
        ({"llm_int8_threshold": -1.0}, "threshold must be finite and >= 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(source: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CausalLM.from_pretrained(
            source, quantization_config=BitsAndBytesConfig(load_in_8bit=True, **settings)
        )


def test_switching_on_and_off(source: Path) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True)
    assert bitsandbytes.is_enabled()  # by itself: bitsandbytes is not installed
    try:
        bitsandbytes.disable()
        assert not bitsandbytes.is_enabled()
        for bits in (config, BitsAndBytesConfig(load_in_4bit=True)):
            with pytest.raises(ImportError, match="requires bitsandbytes"):
                CausalLM.from_pretrained(source, quantization_config=bits)
        with bitsandbytes.enabled():
            assert int8_layers(CausalLM.from_pretrained(source, quantization_config=config))
        assert not bitsandbytes.is_enabled()
        with pytest.raises(OSError, match="nowhere"), bitsandbytes.enabled():
            CausalLM.from_pretrained("./nowhere")
        assert not bitsandbytes.is_enabled()
        bitsandbytes.enable()
        with bitsandbytes.enabled():
            pass
        assert bitsandbytes.is_enabled()
    finally:
        bitsandbytes.enable()


def test_where_bitsandbytes_is_installed_it_is_replaced_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise AssertionError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = (
        "import sys, llmint8\nfrom llmint8.integrations import bitsandbytes\n"
        "assert 'transformers' not in sys.modules\nimport transformers.quantizers.auto\n"
        "assert not bitsandbytes.is_enabled()\nbitsandbytes.enable()\nassert bitsandbytes.is_enabled()\n"
        "assert 'bitsandbytes' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
