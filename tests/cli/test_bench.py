"""`llmint8 bench`: tables of ratios that follow from the times, whole files, bad arguments refused."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from llmint8 import bench
from llmint8.bench import Benchmark, Limits, Point

TIMES = {
    "llmint8 6.0": 100e-6,
    "llmint8 auto": 88e-6,
    "llmint8 0": 80e-6,
    "llmint8 6.0, 1 %": 112e-6,
    "float32": 300e-6,
    "bfloat16": 160e-6,
    "float16": 200e-6,
    "torch._int_mm": 50e-6,
    "torchao": 500e-6,
}
FASTER = {name: seconds / 4 for name, seconds in TIMES.items() if name != "torch._int_mm"} | {
    "llmint8 6.0": 100e-6
}
POINTS = [
    Point(1000, 2000, 1, TIMES, extra_bytes=3 << 20),
    Point(1000, 2000, 64, FASTER, {"torch._int_mm": "RuntimeError: not here"}),
]
ABOUT = {"cpu": "Some CPU", "threads": 3, "torch": "9.9", "kernels": "native:test"}
FOUND = Benchmark(ABOUT, Limits(40e9, 4e12), POINTS)


@pytest.fixture
def asked(monkeypatch):
    """What the command asks to be measured; nothing is, and FOUND is the answer."""
    calls = []

    def run_benchmark(*arguments):
        calls.append(arguments[:-1])
        return FOUND

    monkeypatch.setattr(bench, "run_benchmark", run_benchmark)
    return calls


def rows(outcome, start):
    """The cells of the table under a title, by K×N and M."""
    lines = outcome.stdout[outcome.stdout.index(start) :].splitlines()
    cells = [line.split() for line in lines[1:]]
    found = {}
    for row in cells:
        if "Last" in row:  # the caption, where the table ends
            break
        if row[:1] in (["1000×2000"], ["mean"]):
            found[(row[0], row[1]) if row[0] != "mean" else "mean"] = row
    return found


def test_ratios_of_the_others(run, asked):
    table = rows(run("bench", code=0), "Time of the others")
    # K×N, M, µs, share and limit, fastest float, float32, bfloat16, float16, _int_mm, torchao
    assert table["1000×2000", "1"] == [
        "1000×2000", "1", "100", "50%", "memory", "1.60", "3.00", "1.60", "2.00", "0.50", "5.00"
    ]  # fmt: skip
    assert table["1000×2000", "64"] == [
        "1000×2000", "64", "100", "64%", "int8", "0.40", "0.75", "0.40", "0.50", "1.25"
    ]  # fmt: skip
    assert table["mean"] == ["mean", "0.80", "1.50", "0.80", "1.00", "0.50", "2.50"]


def test_what_outliers_cost(run, asked):
    table = rows(run("bench", code=0), "What outliers cost")
    assert table["1000×2000", "1"] == ["1000×2000", "1", "80", "1.25", "1.10", "1.40", "3.0", "of", "1.0"]
    assert table["1000×2000", "64"] == ["1000×2000", "64", "20", "5.00", "1.10", "1.40"]
    assert table["mean"] == ["mean", "2.50", "1.10", "1.40"]


def test_machine_limits_and_what_did_not_run(run, asked):
    outcome = run("bench", code=0)
    assert "Some CPU, 3 threads, torch 9.9, kernels native:test" in outcome.stdout
    assert "memory 40.0 GB/s, int8 4000 G operations/s" in outcome.stdout
    assert "note: torch._int_mm did not run at 1000×2000 M=64: RuntimeError: not here\n" in outcome.stderr


def test_memory_that_was_not_measured_is_a_remark(run, monkeypatch):
    found = Benchmark({**ABOUT, "memory_not_measured": "not on this system"}, FOUND.limits, POINTS[1:])
    monkeypatch.setattr(bench, "run_benchmark", lambda *arguments: found)
    assert "note: memory was not measured: not on this system\n" in run("bench", code=0).stderr


def test_defaults_and_quick(run, asked):
    run("bench", code=0)
    run("bench", "--quick", code=0)
    shapes = ((576, 1536), (2048, 2048), (4096, 4096), (4096, 11008))
    assert asked[0] == (shapes, (1, 4, 16, 64, 128, 512), 300, 0.5, 4096)
    assert asked[1] == (shapes[:2], (1, 16, 128), 300, 0.2, 2048)


def test_options(run, asked):
    before = torch.get_num_threads()
    try:
        run("bench", "--shapes", "8x16,3×5,8x16", "--rows", "7,1", "--threads", 1, "--rounds", 4,
            "--budget", "0", "--quick", code=0)  # fmt: skip
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert asked == [(((8, 16), (3, 5)), (7, 1), 4, 0.0, 2048)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--shapes", "8"),
        ("--shapes", "8x8x8"),
        ("--shapes", "0x8"),
        ("--shapes", ""),
        ("--rows", "0"),
        ("--rows", "1,,2"),
        ("--rows", "many"),
        ("--threads", "0"),
        ("--rounds", "2"),
        ("--budget", "-1"),
    ],
)
def test_bad_numbers_are_wrong_usage(run, asked, option, value):
    assert option in run("bench", option, value, code=2).stderr
    assert asked == []


def test_files(run, asked, tmp_path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "layer.json", tmp_path / "layer.png"
    file.write_text("old")
    run("bench", "--json", file, "--plot", picture, code=0)
    assert json.loads(file.read_text()) == FOUND.to_dict()
    assert picture.read_bytes() == bench.draw(FOUND)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer.json", "layer.png"]


def test_files_that_cannot_be_written_are_refused_before_the_work(run, asked, tmp_path):
    assert run("bench", "--json", tmp_path).error == f"--json {tmp_path} is a folder; give the name of a file"
    nowhere = tmp_path / "none" / "a.json"
    assert "is no folder; create it first" in run("bench", "--json", nowhere).error
    assert "the name must end in .png" in run("bench", "--plot", tmp_path / "a.jpg").error
    assert asked == []


def test_without_matplotlib_plot_is_refused_before_the_work(run, asked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    assert "pip install 'llmint8[plot]'" in run("bench", "--plot", tmp_path / "a.png").error
    assert asked == []


def test_a_failure_leaves_no_partial_file(run, asked, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("old")

    def fails(self, target):
        raise OSError("disk trouble")

    monkeypatch.setattr("pathlib.Path.replace", fails)
    assert "disk trouble" in run("bench", "--json", tmp_path / "a.json").error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_options_of_the_other_kind_are_wrong_usage(run, asked, float_model):
    outcome = run("bench", "--model", float_model, "--shapes", "8x8", code=2)
    assert "--shapes is for one layer" in outcome.stderr
    assert "--batches is for a whole model" in run("bench", "--batches", "2", code=2).stderr
    assert "--new-tokens" in run("bench", "--model", float_model, "--new-tokens", "1", code=2).stderr
    assert asked == []
