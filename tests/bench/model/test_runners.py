"""Real processes and a tiny model: what is measured is what the model computes."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmint8.bench.memory import _CLEAR
from llmint8.bench.model import Workload, run_model_benchmark, turns
from llmint8.bench.model.entries import ENTRIES, FLOAT32, entry_called
from llmint8.bench.model.forms import Forms
from llmint8.bench.model.gguf_file import write_gguf
from llmint8.bench.model.process import Worker
from llmint8.bench.model.worker import Session
from llmint8.errors import LLMInt8Error
from tiny import save_tiny_checkpoint

PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama whose rows are whole blocks of Q8_0."""
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", **sizes)


@pytest.fixture(scope="module")
def forms(folder, tmp_path_factory):
    return Forms(folder, tmp_path_factory.mktemp("forms"))


def greedy(model, rows, new_tokens):
    """New tokens, one forward pass of the whole text for each."""
    ids = torch.tensor(rows)
    with torch.inference_mode():
        for _ in range(new_tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[:, len(rows[0]) :].tolist()


def test_forms_hold_the_model(folder, forms):
    assert forms.path("float32") == folder
    half = load_file(forms.path("bfloat16") / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    stored = {name: load_file(forms.path(name) / "model.safetensors") for name in ("int8", "int8 head")}
    layer = "model.layers.1.mlp.up_proj.weight"
    assert all(tensors[layer].dtype == torch.int8 for tensors in stored.values())
    assert stored["int8"]["lm_head.weight"].dtype == torch.bfloat16
    assert stored["int8 head"]["lm_head.weight"].dtype == torch.int8
    assert forms.path("int8") == forms.path("int8")
    theirs = load_file(forms.path("bitsandbytes") / "model.safetensors")
    assert torch.equal(theirs[layer], stored["int8"][layer])


@pytest.mark.parametrize("name", [FLOAT32, "llmint8", "llmint8 fast"])
def test_runners_write_the_greedy_continuation_of_every_row(forms, name):
    entry = entry_called(name)
    threads = torch.get_num_threads()
    runner = entry.make(str(forms.path(entry.form)), threads)
    session = Session(runner)
    assert session.answer({})["seconds"] > 0
    answer = session.answer({"rows": PROMPTS, "new_tokens": 5})
    model = AutoModelForCausalLM.from_pretrained(forms.path(entry.form))
    assert answer["tokens"] == greedy(model, PROMPTS, 5)
    assert answer["first_seconds"] > 0
    assert answer["further_seconds"] > 0


def test_a_run_in_real_processes(folder, monkeypatch):
    """One new token more than the first, two rounds."""
    monkeypatch.setattr(turns, "LOADS", 1)
    entries = [entry for entry in ENTRIES if entry.name in (FLOAT32, "llmint8 fast")]
    text = list(range(60))
    found = run_model_benchmark(folder, text, [Workload(2, 6, 2)], 2, 60.0, 1, lambda *_: None, entries)
    for result in found.results:
        assert result.failure is None
        assert result.load_seconds > 0
        cell = result.cells[0]
        assert cell.runs == 2
        assert 0 < found.new_rate(result, 0) < 1e9
        if _CLEAR.exists():
            assert 0 <= result.load_peak_bytes <= cell.peak_bytes < 1 << 30
    assert found.results[0].cells[0].same_tokens == 2
    assert found.environment["transformers"]
    rate = found.to_dict()["results"][0]["cells"][0]["prompt_tokens_per_second"]
    assert rate == found.prompt_rate(found.results[0], 0)


def test_a_worker_tells_what_went_wrong(folder, tmp_path):
    with Worker(FLOAT32, str(tmp_path / "nowhere"), 1) as worker:
        with pytest.raises(LLMInt8Error, match="nowhere"):
            worker.ask({})
        worker._process.kill()
        with pytest.raises(LLMInt8Error, match="its process ended with code -9"):
            worker.ask({})


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama-cpp-python is here")
def test_a_worker_whose_library_is_missing_does_not_start(tmp_path):
    with pytest.raises(LLMInt8Error, match="ModuleNotFoundError: No module named 'llama_cpp'"):
        Worker("llama.cpp Q8_0", str(tmp_path / "a.gguf"), 1)


def test_a_gguf_holds_the_weights_in_blocks(folder, tmp_path):
    gguf = pytest.importorskip("gguf")
    write_gguf(folder, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    floats = load_file(folder / "model.safetensors")
    assert len(stored) == len(floats)
    down = floats["model.layers.1.mlp.down_proj.weight"].numpy()
    found = gguf.dequantize(stored["blk.1.ffn_down.weight"].data, stored["blk.1.ffn_down.weight"].tensor_type)
    assert abs(found - down).max() <= abs(down).max() / 127 * 0.51
    norm = stored["blk.0.attn_norm.weight"]
    assert (norm.data == floats["model.layers.0.input_layernorm.weight"].numpy()).all()
    # Heads of 16 rows: llama.cpp's row 1 is the first of the second half.
    query = floats["model.layers.0.self_attn.q_proj.weight"].numpy()
    q = stored["blk.0.attn_q.weight"]
    found = gguf.dequantize(q.data, q.tensor_type)
    order = [head * 16 + half * 8 + pair for head in range(4) for pair in range(8) for half in range(2)]
    assert abs(found - query[order]).max() <= abs(query).max() / 127 * 0.51


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "qwen2"}, "of Llama models alone, and this is 'qwen2'"),
        ({"attention_bias": True}, "without biases"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "plain rotary positions"),
        ({"intermediate_size": 48}, "a multiple of 32"),
    ],
)
def test_what_a_gguf_is_not_written_of(folder, tmp_path, changes, reason):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(LLMInt8Error, match=reason):
        write_gguf(tmp_path, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
