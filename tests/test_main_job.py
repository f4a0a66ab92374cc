"""The main job end to end: a float model becomes int8, generates, is saved, and comes back bit for bit."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agreement.cases import same_bits
from llmint8 import Int8Config, Int8Linear, QuantizationError, dequantize_model, quantize_model
from tiny import save_tiny_checkpoint, tiny_gpt2, tiny_llama, tiny_tokenizer

PROMPTS = ["one", "two words", "three and four", "x" * 30, "Once upon a time", "seven", "and the last"]


def int8_layers(model: torch.nn.Module) -> dict[str, Int8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def state_bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.contiguous().view(torch.uint8)
        for name, tensor in model.state_dict().items()
        if tensor.dim()
    }


@pytest.mark.parametrize("threshold", [0.0, 6.0, "auto"])
def test_a_row_never_depends_on_its_batch(threshold: float | str) -> None:
    """Every int8 layer of a model, on the hidden states that a batch of seven prompts really gives it."""
    model = tiny_llama()
    quantize_model(model, Int8Config(threshold=threshold))
    seen: dict[Int8Linear, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda module, given, output: seen.update({module: (given[0], output)}))
        for layer in int8_layers(model).values()
    ]
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    with torch.inference_mode():
        model(**tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 14
    with torch.inference_mode():
        for layer, (given, output) in seen.items():
            for row, want in zip(given.flatten(0, 1), output.flatten(0, 1), strict=True):
                assert same_bits(layer(row), want)
                assert same_bits(layer(row[None, None]), want[None, None])


def test_on_the_fly_in_memory_and_saved_are_the_same_bits(tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "float")
    loaded = AutoModelForCausalLM.from_pretrained(source, quantization_config=Int8Config(threshold="auto"))
    converted = AutoModelForCausalLM.from_pretrained(source)
    quantize_model(converted, Int8Config(threshold="auto"))
    assert len(int8_layers(loaded)) == 14
    models = [loaded, converted]
    for index, model in enumerate((loaded, converted)):
        model.save_pretrained(tmp_path / str(index))
        models.append(AutoModelForCausalLM.from_pretrained(tmp_path / str(index)))
    tokens = torch.arange(20)[None]
    want_state, want_logits = state_bits(loaded), loaded(tokens).logits
    want_text = loaded.generate(tokens, max_new_tokens=8, do_sample=False)
    for model in models[1:]:
        assert all(layer.threshold == "auto" for layer in int8_layers(model).values())
        state = state_bits(model)
        assert state.keys() == want_state.keys()
        assert all(torch.equal(state[name], want_state[name]) for name in state)
        assert same_bits(model(tokens).logits, want_logits)
        assert torch.equal(model.generate(tokens, max_new_tokens=8, do_sample=False), want_text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_is_that_of_the_rest_and_never_of_the_scales(tmp_path: Path, dtype: torch.dtype) -> None:
    source = save_tiny_checkpoint(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=Int8Config(), dtype=dtype)
    layers = int8_layers(model).values()
    assert {layer.SCB.dtype for layer in layers} == {torch.float32}
    assert {layer.weight.dtype for layer in layers} == {torch.int8}
    assert model.model.embed_tokens.weight.dtype == dtype
    assert model(torch.arange(5)[None]).logits.dtype == dtype


def test_gpt2_and_its_conv1d(tmp_path: Path) -> None:
    model = tiny_gpt2()
    model.save_pretrained(tmp_path / "float")
    tokens = torch.arange(16)[None]
    exact = model(tokens).logits
    report = quantize_model(model)
    assert {row.kind for row in report.converted} == {"Conv1D"}
    assert len(report.converted) == 8
    assert type(model.lm_head) is torch.nn.Linear
    logits = model(tokens).logits
    assert torch.nn.functional.cosine_similarity(logits, exact, dim=-1).min() > 0.99
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    assert same_bits(loaded(tokens).logits, logits)
    loaded.save_pretrained(tmp_path / "int8")
    assert same_bits(AutoModelForCausalLM.from_pretrained(tmp_path / "int8")(tokens).logits, logits)


def test_the_report_names_every_matrix_and_counts_bytes() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    matrices = {n.removesuffix(".weight") for n, p in model.named_parameters() if p.dim() == 2} | {"lm_head"}
    report = quantize_model(model, Int8Config(skip_modules=("down_proj",)))
    assert {row.name for row in report.rows} == matrices
    decisions = {row.name: row.decision for row in report.skipped}
    assert decisions["lm_head"] == "output head"
    assert decisions["model.layers.1.mlp.down_proj"] == "skip_modules: down_proj"
    row = next(row for row in report.converted if row.name.endswith("up_proj"))
    assert (row.bytes_before, row.bytes_after) == (4 * 48 * 32, 48 * 32 + 4 * 48 + 1)
    assert report.bytes_after == sum(t.nbytes for t in {*model.parameters(), *model.buffers()})
    assert "down_proj" in str(report)


def test_a_model_cannot_be_converted_twice_or_with_a_bad_weight() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("inf")
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        quantize_model(model)
    assert not int8_layers(model)
    model = tiny_llama()
    quantize_model(model)
    with pytest.raises(QuantizationError, match="int8 already"):
        quantize_model(model)


def test_dequantized_again_it_is_close_to_what_it_was() -> None:
    model, tokens = tiny_llama(), torch.arange(20)[None]
    exact = model(tokens).logits
    quantize_model(model)
    dequantize_model(model)
    assert not int8_layers(model)
    assert torch.nn.functional.cosine_similarity(model(tokens).logits, exact, dim=-1).min() > 0.99
