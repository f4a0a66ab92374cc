"""`BitsAndBytesConfig(load_in_4bit=True)`: loads on the fly, saves, loads again, takes adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import llmint8
from llmint8.errors import ConfigError, QuantizationError
from llmint8.nn import Linear4bit
from tiny import tiny_llama

IDS = torch.arange(1, 9)[None]


@pytest.fixture
def folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "float")
    return tmp_path


def load(path, **settings):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **settings)
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype=torch.float32)


@pytest.mark.parametrize("double_quant", [False, True])
def test_on_the_fly_is_converting_in_memory_and_survives_saving(folder, double_quant) -> None:
    model = load(folder / "float", bnb_4bit_use_double_quant=double_quant)
    converted = AutoModelForCausalLM.from_pretrained(folder / "float", dtype=torch.float32)
    report = llmint8.quantize_model_4bit(converted, double_quant=double_quant)
    layers = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert layers == [row.name for row in report.converted]
    assert not any("head" in name for name in layers)
    with torch.no_grad():
        want = model(IDS).logits
        assert torch.equal(converted(IDS).logits, want)
        model.save_pretrained(folder / "saved")
        again = AutoModelForCausalLM.from_pretrained(folder / "saved")
        assert torch.equal(again(IDS).logits, want)
    layer = again.get_submodule(layers[0])
    assert layer.double_quant == double_quant
    stored = load_file(folder / "saved" / "model.safetensors")
    assert torch.equal(stored[f"{layers[0]}.weight.absmax"], layer.absmax)
    text = again.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(text, model.generate(IDS, max_new_tokens=4, do_sample=False))


def test_named_modules_stay_and_dequantize_brings_floats_back(folder) -> None:
    model = load(folder / "float", llm_int8_skip_modules=["down_proj", "lm_head"])
    kinds = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert "down_proj" not in kinds
    assert "up_proj" in kinds
    with torch.no_grad():
        want = model(IDS).logits
        got = model.dequantize()(IDS).logits
    torch.testing.assert_close(got, want)
    assert not any(isinstance(module, Linear4bit) for module in model.modules())


def test_adapters_train_on_four_bits(folder) -> None:
    model = load(folder / "float", bnb_4bit_use_double_quant=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.5)
    losses = []
    for _ in range(6):
        loss = adapted(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    with pytest.raises(QuantizationError, match="4-bit"):
        adapted.merge_and_unload()
    base = adapted.unload().state_dict()
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())


def test_what_cannot_be_loaded_says_why(folder) -> None:
    with pytest.raises(ConfigError, match="quant_storage"):
        load(folder / "float", bnb_4bit_quant_storage=torch.bfloat16)
    model = load(folder / "float")
    model.save_pretrained(folder / "saved")
    path = folder / "saved" / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("weight.absmax"))
    save_file({**tensors, name: tensors[name][:-1]}, path, {"format": "pt"})
    with pytest.raises(QuantizationError, match="absmax is"):
        AutoModelForCausalLM.from_pretrained(folder / "saved")
    broken = tiny_llama()
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.inf
    broken.save_pretrained(folder / "broken")
    with pytest.raises(QuantizationError, match="up_proj"):
        load(folder / "broken")


def test_a_model_is_converted_whole_or_not_at_all() -> None:
    model = tiny_llama()
    model.model.layers[-1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(QuantizationError, match="down_proj"):
        llmint8.quantize_model_4bit(model)
    assert not any(isinstance(module, Linear4bit) for module in model.modules())
    model = tiny_llama()
    llmint8.quantize_model_4bit(model, skip_modules=["q_proj"])
    with pytest.raises(QuantizationError, match="already"):
        llmint8.quantize_model_4bit(model)


def test_a_model_converted_in_memory_is_saved_as_such(folder) -> None:
    model = tiny_llama()
    report = llmint8.quantize_model_4bit(model, "fp4", skip_modules=["down_proj"])
    assert "Conversion to 4 bits" in str(report)
    model.save_pretrained(folder / "saved")
    again = AutoModelForCausalLM.from_pretrained(folder / "saved")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    layers = [name for name, module in again.named_modules() if isinstance(module, Linear4bit)]
    assert layers == [row.name for row in report.converted]
    assert not any("down_proj" in name for name in layers)
