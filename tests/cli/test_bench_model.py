"""`llmint8 bench --model`: what is asked of the run, and its tables."""

from __future__ import annotations

import json

import pytest
import torch

from llmint8.bench import model
from llmint8.bench.model import Cell, ModelBenchmark, Result, Workload

MIB = 1 << 20
RESULTS = [
    Result(
        "transformers float32", "float32", 1.5, 9, [Cell(2.0, 4.0, 3, 11.0, 50 * MIB), None], "batch 8: oh"
    ),
    Result("llmint8 fast", "int8", 0.5, 9, [Cell(0.5, 1.0, 3, 9.0, 20 * MIB), Cell(1.0, 2.0, 1, None, None)]),
    Result("llama.cpp Q8_0", "gguf", failure="llama-cpp-python is not installed", cells=[None, None]),
]
ABOUT = {"cpu": "Some CPU", "threads": 3, "torch": "9.9", "kernels": "native:test"}
FOUND = ModelBenchmark(ABOUT, "a-model", [Workload(1, 100, 11), Workload(8, 100, 11)], RESULTS)


@pytest.fixture
def asked(monkeypatch):
    """What the command asks to be measured; nothing is, and FOUND is the answer."""
    calls = []

    def run_model_benchmark(folder, ids, *arguments):
        calls.append((folder, len(ids), *arguments[:-1]))
        return FOUND

    monkeypatch.setattr(model, "run_model_benchmark", run_model_benchmark)
    return calls


def test_tables(run, asked, float_model):
    outcome = run("bench", "--model", float_model, "--quick", code=0)
    assert "a-model: Some CPU, 3 threads, torch 9.9, kernels native:test" in outcome.stdout
    one, eight = outcome.stdout.split("8 prompts at once of 100 tokens, 11 new tokens each")
    assert "1 prompt of 100 tokens, 11 new tokens each" in one
    rows = [line.split() for line in one.splitlines()]
    # name, on disk, loading s, first token s, prompt tokens/s, new tokens/s, MiB, same tokens, runs
    assert ["transformers", "float32", "float32", "1.50", "2.000", "50", "2.5", "50", "11.0", "3"] in rows
    assert ["llmint8", "fast", "int8", "0.50", "0.500", "200", "10.0", "20", "9.0", "3"] in rows
    assert ["llmint8", "fast", "int8", "0.50", "1.000", "800", "40.0", "1"] in [
        line.split() for line in eight.splitlines()
    ]
    assert "transformers float32" not in eight
    assert "note: transformers float32 did not run: batch 8: oh\n" in outcome.stderr
    assert "note: llama.cpp Q8_0 did not run: llama-cpp-python is not installed\n" in outcome.stderr


def test_settings(run, asked, float_model, monkeypatch):
    run("bench", "--model", float_model, "--prompt-tokens", 40, "--new-tokens", 2, "--batches", "2,1",
        "--rounds", 4, "--budget", 7, code=0)  # fmt: skip
    run("bench", "--model", float_model, "--quick", code=0)
    folder, text, *rest = asked[0]
    assert folder == float_model
    assert text > 20_000  # the shipped text, a token for each byte
    threads = torch.get_num_threads()
    assert rest == [[Workload(2, 40, 2), Workload(1, 40, 2)], 4, 7.0, threads]
    assert asked[1][2:] == ([Workload(1, 128, 16)], 3, 20.0, threads)


def test_files(run, asked, float_model, tmp_path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "model.json", tmp_path / "model.png"
    run("bench", "--model", float_model, "--quick", "--json", file, "--plot", picture, code=0)
    assert json.loads(file.read_text()) == FOUND.to_dict()
    assert picture.read_bytes() == model.draw(FOUND)


def test_what_cannot_be_measured_is_refused_before_the_work(run, asked, float_model, int8_model, tmp_path):
    error = run("bench", "--model", float_model).error
    assert error.startswith("512 prompt and 64 new tokens exceed the model's 256 positions")
    assert "is int8 already; bench takes the float model" in run("bench", "--model", int8_model).error
    assert "does not exist" in run("bench", "--model", tmp_path / "none").error
    assert asked == []
