"""What is timed is the layer: every candidate returns its product, on weights of its own each time."""

from __future__ import annotations

import pytest
import torch

from llmint8 import reference
from llmint8.bench import Layer, candidates, peers

K, N, M = 40, 24, 5


@pytest.fixture(scope="module", autouse=True)
def few_copies():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "copies", lambda nbytes, beyond: 3)
        yield


@pytest.fixture(scope="module")
def layer():
    return Layer(K, N)


@pytest.fixture(scope="module")
def found(layer):
    return layer.candidates(M)


def arguments(candidate):
    """The module or function that a call would run, and its input."""
    call = candidate.prepare()
    return call.func, call.args[0]


def test_every_candidate_runs(found):
    assert [*found][:7] == [
        "llmint8 6.0",
        "llmint8 auto",
        "llmint8 0",
        "llmint8 auto, int16",
        "llmint8 6.0, 1 %",
        "llmint8 6.0, 5 %",
        "llmint8 6.0, 100 %",
    ]
    assert [*found][7:11] == ["float32", "bfloat16", "float16", "torch._int_mm"]
    with torch.inference_mode():
        assert {candidate.prepare()().shape for candidate in found.values()} == {(M, N)}


@pytest.mark.parametrize(("name", "threshold"), [("6.0", 6.0), ("auto", "auto"), ("0", 0.0)])
def test_ours_is_the_module_with_that_threshold(found, name, threshold):
    module, x = arguments(found[f"llmint8 {name}"])
    assert module.threshold == threshold
    assert x.dtype == torch.bfloat16
    code = -1.0 if threshold == "auto" else threshold
    expected = reference.linear(x, module.weight, module.SCB, None, code)
    assert torch.equal(module(x), expected)


def test_the_second_digit_is_on_columns_with_outliers(found):
    module, _ = arguments(found["llmint8 auto, int16"])
    assert module.threshold == "auto"
    assert module.outlier_cols.tolist() == [0]
    wide = Layer(600, 1)
    module, x = arguments(wide.candidates(1)["llmint8 auto, int16"])
    assert module.outlier_cols.tolist() == [0, 1, 2, 3, 4, 5, 6, 100, 200, 300, 400, 500]
    low_digit = module.outlier_cols, module.weight_low
    expected = reference.linear(x, module.weight, module.SCB, None, -1.0, *low_digit)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_floats_are_torchs_own_in_their_type(found, name):
    call = found[name].prepare()
    assert [tensor.dtype for tensor in call.args] == [getattr(torch, name)] * 2


def test_all_forms_hold_the_same_weight(found):
    weight = found["float32"].prepare().args[1]
    codes, _ = reference.quantize_weight(weight)
    assert torch.equal(found["llmint8 0"].prepare().func.weight, codes)
    assert torch.equal(found["torch._int_mm"].prepare().args[1], codes.t())
    assert torch.equal(found["float16"].prepare().args[1], weight.half())


def test_no_weight_is_used_twice_in_a_row(found):
    pointers = [found["llmint8 6.0"].prepare().func.weight.data_ptr() for _ in range(4)]
    assert len(set(pointers[:3])) == 3
    assert pointers[3] == pointers[0]
    assert len({found["bfloat16"].prepare().args[1].data_ptr() for _ in range(3)}) == 3


def test_the_papers_outliers_are_six_columns(found):
    _, x = arguments(found["llmint8 6.0"])
    assert int((x.abs() > 6).any(dim=0).sum()) == 6


@pytest.mark.parametrize(("share", "count"), [("1 %", 1), ("5 %", 2), ("100 %", K)])
def test_scattered_outliers_are_that_many_in_each_row(found, share, count):
    module, x = arguments(found[f"llmint8 6.0, {share}"])
    assert module.threshold == 6.0
    outliers = x.abs() >= 6
    assert outliers.sum(dim=1).tolist() == [count] * M
    if count < K:
        assert len({tuple(row) for row in outliers.tolist()}) > 1  # columns of its own


def test_a_library_that_cannot_build_the_layer_is_a_remark(monkeypatch):
    def build(name, weight, count):
        raise TypeError("no such layer")

    monkeypatch.setattr(peers, "installed", lambda: ["torchao"])
    monkeypatch.setattr(peers, "build", build)
    layer = Layer(8, 8)
    assert layer.failures == {"torchao": "TypeError: no such layer"}
    assert "torchao" not in layer.candidates(1)


def test_an_installed_library_takes_part(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda: ["torchao"])
    monkeypatch.setattr(peers, "build", lambda name, weight, count: [torch.nn.Identity()] * count)
    candidate = Layer(8, 8).candidates(2)["torchao"]
    assert candidate.may_fail
    assert candidate.prepare()().shape == (2, 8)


def test_layers_of_any_size(monkeypatch):
    with torch.inference_mode():
        for candidate in Layer(1, 1).candidates(1).values():
            assert candidate.may_fail or candidate.prepare()().shape == (1, 1)
