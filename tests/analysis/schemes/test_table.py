"""Each scheme computes what its source says: numbers whose scales are powers of two, so equalities hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import tensor

from llmint8 import reference
from llmint8.analysis.schemes import (
    NAMES,
    ColumnStatistics,
    Layer,
    check_names,
    needs_calibration,
    schemes_named,
)
from llmint8.config import threshold_code
from llmint8.errors import ConfigError

#: 127 in units that make the scale a power of two: /64, /256.
A, B = 127 / 64, 127 / 256


def run(name, x, weight, bias=None, seen=None):
    (scheme,) = schemes_named([name], seen)
    return scheme.linear(x, Layer("layer", weight, bias))


def seen(largest, outliers=(0, 0)):
    return ColumnStatistics(tensor(largest), tensor(outliers))


X = tensor([[127.0, 1.4], [31.75, -0.3]])
W = tensor([[127.0, -1.6], [0.4, 31.75]])


@pytest.mark.parametrize(
    ("name", "x", "w"),
    [
        ("absmax", [[127, 1], [32, 0]], [[127, -2], [0, 32]]),
        ("absmax-row", [[127, 1], [31.75, -0.25]], [[127, -2], [0, 32]]),
        ("absmax-vector", [[127, 1], [31.75, -0.25]], [[127, -2], [0.5, 31.75]]),
        ("weight-only", [[127, 1.4], [31.75, -0.3]], [[127, -2], [0.5, 31.75]]),
    ],
)
def test_absmax(name, x, w):
    y, kept = run(name, X, W, tensor([1.0, 2.0]))
    assert torch.equal(y, tensor(x).float() @ tensor(w).float().T + tensor([1.0, 2.0]))
    assert (kept is None) == (name != "weight-only")


def test_zeropoint_of_a_tensor_and_of_its_rows():
    x = tensor([[0.0, 254.0], [-63.6, 0.4]])
    ones = torch.eye(2) * 254  # the range of a weight is 0 to 254: codes are exact
    # One range, 0.8 units a step, for all; then a range for each row.
    whole = ((x * (254 / 317.6)).round()) / (254 / 317.6)
    torch.testing.assert_close(run("zeropoint", x, ones)[0] / 254, whole, rtol=1e-6, atol=1e-6)
    y, _ = run("zeropoint-vector", tensor([[0.0, 254.0], [1.4, 99.6]]), ones)
    assert torch.equal(y[0] / 254, tensor([0.0, 254.0]))
    torch.testing.assert_close(y[1] / 254, tensor([1.4, 99.6]), rtol=0, atol=0.5 * 99.6 / 254 + 1e-4)


def test_zeropoint_takes_twice_the_resolution_of_absmax_where_signs_agree():
    x = torch.linspace(0, 1, 97).repeat(3, 1)
    w = torch.eye(97)
    error = {name: (run(name, x, w)[0] - x).abs().max() for name in ("absmax-vector", "zeropoint-vector")}
    assert error["zeropoint-vector"] < 0.6 * error["absmax-vector"]


def test_decomposition_multiplies_outlier_columns_in_float16():
    x = tensor([[6.0001, A, 0.3], [1.0001, B, -0.3]])
    w = tensor([[A, 0.1, -1.0], [0.1, B, 0.1]])
    rest = tensor([[0, A, 19 / 64], [0, B, -77 / 256]])
    low = tensor([[A, 6 / 64, -1.0], [26 / 256, B, 26 / 256]])
    # 6.0001 is 6 in float16; the 1.0001 in the same column keeps its float16 value too.
    half = x[:, :1].half().float() @ w[:, :1].half().float().T
    y, kept = run("llm-int8", x, w)
    assert torch.equal(y, rest @ low.T + half)
    assert half[0, 1] == 6 * w[1, 0].half().float()
    assert kept.tolist() == [[True, False, False]]
    by_tensor, _ = run("absmax-row-decomposed", x, w)
    assert torch.equal(by_tensor, rest @ ((w * 64).round() / 64).T + half)
    zeropoint, kept = run("llm-int8-zeropoint", x, w)
    assert kept.tolist() == [[True, False, False]]
    torch.testing.assert_close(zeropoint, x @ w.T, rtol=0.02, atol=0.02)


def test_a_value_just_below_the_threshold_is_no_outlier():
    x = tensor([[5.999, 1.0], [-6.0, 1.0]])
    assert run("llm-int8", x[:1], torch.eye(2))[1].tolist() == [[False, False]]
    assert run("llm-int8", x, torch.eye(2))[1].tolist() == [[True, False]]


def test_outliers_beyond_float16_saturate():
    y, _ = run("llm-int8", tensor([[1e6, 1.0]]), torch.eye(2))
    assert y[0, 0] == torch.finfo(torch.float16).max


def test_bitsandbytes_multiplies_outliers_with_int8_weights():
    """A row's scale counts its small values in outlier columns: 127/64 makes the 0.3 below it 19/64."""
    x = tensor([[7.0, B], [A, 0.3]]).half().float()
    w = tensor([[A, 0.1]])
    low = tensor([[A, 6 / 64]])
    small = tensor([[0, B], [0, 19 / 64]])
    half = x[:, :1] @ low[:, :1].half().float().T
    y, kept = run("bitsandbytes", x, w)
    assert torch.equal(y, small @ low.T + half)
    assert kept.tolist() == [[True, False]]


def test_bitsandbytes_itself_differs_by_float16_rounding():
    """write_bitsandbytes_layer.py recorded what bitsandbytes returned, which it rounds to float16 twice."""
    case = load_file(Path(__file__).parent / "bitsandbytes_layer.safetensors")
    y, kept = run("bitsandbytes", case["x"], case["weight"])
    assert 0 < kept.sum() < kept.numel()
    spacing = 2.0 ** (case["y"].float().abs().max().log2().floor() - 10)
    assert (y - case["y"].float()).abs().max() <= spacing
    for other in ("llm-int8", "absmax-vector"):
        error = run(other, case["x"].float(), case["weight"])[0] - case["y"].float()
        assert error.abs().max() > 2 * spacing, other


def test_smoothquant_moves_half_of_the_range():
    x, w = tensor([[64.0, 0.25], [16.0, -1.0]]), tensor([[1.0, 4.0], [0.5, -1.0]])
    factor = tensor([8.0, 0.5])  # sqrt(64 / 1), sqrt(1 / 4)
    y, kept = run("smoothquant", x, w, seen={"layer": seen([64.0, 1.0])})
    plain, _ = run("absmax-vector", x / factor, w * factor)
    assert torch.equal(y, plain)
    assert kept is None
    dead = run("smoothquant", x, w * tensor([1.0, 0.0]), seen={"layer": seen([64.0, 1.0])})[0]
    assert dead.isfinite().all()


@pytest.mark.parametrize("threshold", [0.0, 6.0, "auto"])
def test_llmint8_is_the_reference(threshold):
    torch.manual_seed(1)
    x = torch.randn(7, 33) * torch.rand(33).pow(-1.5)
    w, bias = torch.randn(9, 33), torch.randn(9)
    name = f"llmint8-{threshold if threshold == 'auto' else int(threshold)}"
    y, kept = run(name, x.bfloat16(), w, bias)
    codes, absmax = reference.quantize_weight(w)
    code = threshold_code(threshold)
    assert torch.equal(y, reference.linear(x.bfloat16(), codes, absmax, bias, code))
    assert kept.any() == (threshold != 0)
    if threshold == 6.0:
        assert not (kept & (x.bfloat16().abs() < 6)).any()


def test_a_second_digit_for_the_most_frequent_outlier_columns():
    torch.manual_seed(2)
    x, w, bias = torch.randn(7, 110), torch.randn(9, 110), torch.randn(9)
    x[:, [5, 60, 90]] *= 40
    counts = torch.zeros(110, dtype=torch.int64)
    counts[[5, 90, 60]] = tensor([3, 9, 9])  # 2 % of 110 are two columns
    statistics = {"layer": ColumnStatistics(x.abs().amax(0), counts)}
    y, kept = run("llmint8-auto-int16", x, w, bias, statistics)
    codes, absmax = reference.quantize_weight(w)
    columns = tensor([60, 90], dtype=torch.int32)
    low = reference.quantize_low_digit(w, codes, absmax, columns)
    assert torch.equal(y, reference.linear(x, codes, absmax, bias, -1.0, columns, low))
    assert torch.equal(kept, run("llmint8-auto", x, w, bias)[1])
    layer = Layer("layer", w, bias)
    (scheme,) = schemes_named(["llmint8-auto-int16"], statistics)
    assert scheme.stored_bytes(layer, 3) == 9 * 110 + 9 * 4 + 2 * 9 + 2 * 4
    never = {"layer": ColumnStatistics(x.abs().amax(0), torch.zeros(110, dtype=torch.int64))}
    assert torch.equal(run("llmint8-auto-int16", x, w, bias, never)[0], run("llmint8-auto", x, w, bias)[0])


def test_nothing_in_gives_the_bias():
    for name in NAMES:
        nothing = {"layer": seen([0.0, 0.0])}
        y, _ = run(name, torch.zeros(3, 2), torch.zeros(2, 2), tensor([1.0, -2.0]), nothing)
        assert torch.equal(y.float(), tensor([[1.0, -2.0]]).expand(3, 2)), name


def test_names_and_their_order():
    assert check_names(["llmint8-auto", "float"]) == ("float", "llmint8-auto")
    assert [scheme.name for scheme in schemes_named(NAMES, {})] == list(NAMES)
    assert all(s.source and s.fault and s.title for s in schemes_named(NAMES, {}))
    with pytest.raises(ConfigError, match="'int4' is no scheme; there are float, absmax,"):
        check_names(["int4"])
    with pytest.raises(ConfigError, match="no scheme is named"):
        check_names([])
    for name in ("smoothquant", "llmint8-auto-int16"):
        with pytest.raises(ConfigError, match=f"{name} needs a calibration"):
            schemes_named([name])
    assert needs_calibration(["float", "smoothquant"])
    assert not needs_calibration(["float"])


def test_bytes():
    layer = Layer("layer", torch.zeros(5, 8), None)
    outliers = [0] * 8
    counted = {"layer": ColumnStatistics(torch.zeros(8), tensor(outliers))}
    size = {s.name: s.stored_bytes(layer, 3) for s in schemes_named(NAMES, counted)}
    assert size["float"] == 5 * 8 * 4
    assert size["absmax"] == size["absmax-row"] == 5 * 8 + 4
    assert size["zeropoint"] == 5 * 8 + 8
    assert size["absmax-vector"] == size["bitsandbytes"] == size["llmint8-auto"] == 5 * 8 + 5 * 4
    assert size["llm-int8"] == 5 * 8 + 5 * 4 + 5 * 3 * 2
    assert size["smoothquant"] == 5 * 8 + 5 * 4 + 8 * 4
