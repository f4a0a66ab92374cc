"""`Int8Linear` with a second weight digit on a few columns: state, copies, casts, loading, gradients."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from agreement.cases import DTYPES, same_bits
from llmint8 import Int8Linear, QuantizationError, reference
from llmint8.nn import Int8Conv1D
from llmint8.numerics import DEFAULT_THRESHOLD
from nn.layers import K, N, assert_same_codes_and_scales, inputs, layer, source

COLUMNS = torch.tensor([0, 2, 16], dtype=torch.int32)
NAMES = ("outlier_cols", "weight_low")


def second(seed: int = 0, columns: Tensor = COLUMNS, bias: bool = True) -> Int8Linear:
    return Int8Linear.from_linear(source(bias, seed), outlier_cols=columns)


def assert_same_state(a: Int8Linear, b: Int8Linear) -> None:
    assert_same_codes_and_scales(a, b)
    for name in NAMES:
        assert torch.equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert same_bits(a(inputs(5)), b(inputs(5)))


def test_state_is_that_of_the_reference() -> None:
    linear, module = source(), second()
    codes, absmax = reference.quantize_weight(linear.weight)
    low = reference.quantize_low_digit(linear.weight, codes, absmax, COLUMNS)
    assert torch.equal(module.weight, codes)
    assert torch.equal(module.weight_low, low)
    assert torch.equal(module.outlier_cols, COLUMNS)
    assert list(module.state_dict()) == ["weight", "bias", "SCB", "weight_format", *NAMES]
    assert list(module.tensors()) == ["weight", "SCB", "bias", *NAMES]
    assert module.invalid_state() is None
    assert "outlier_cols=3" in repr(module)
    assert not linear.weight.equal(module.dequantize())
    error, single = ((linear.weight - m.dequantize()).abs()[:, COLUMNS].max() for m in (module, layer()))
    assert error < single / 50


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_forward(dtype: torch.dtype, shape: tuple[int, ...], bias: bool) -> None:
    module, x = second(bias=bias).to(dtype), inputs(*shape, dtype=dtype)
    state = module.weight, module.SCB, module.bias, DEFAULT_THRESHOLD, module.outlier_cols, module.weight_low
    assert same_bits(module(x), reference.linear(x.reshape(-1, K), *state).reshape(*shape, N))


def test_without_columns_there_is_no_second_digit() -> None:
    module = second(columns=COLUMNS[:0])
    assert module.outlier_cols is None
    assert module.weight_low is None
    assert list(module.state_dict()) == list(layer().state_dict())
    assert "outlier_cols" not in repr(module)


def test_of_a_conv1d() -> None:
    linear = source()
    module = Int8Conv1D.from_weight(linear.weight, linear.bias, outlier_cols=COLUMNS)
    assert_same_state(module, second())
    assert same_bits(module.to_float_layer().weight.T.contiguous(), module.dequantize())


BAD_COLUMNS = {
    "twice": (torch.tensor([1, 1], dtype=torch.int32), "must ascend"),
    "descending": (torch.tensor([2, 1], dtype=torch.int32), "must ascend"),
    "negative": (torch.tensor([-1, 1], dtype=torch.int32), r"must lie in \[0, 17\), got -1 to 1"),
    "too far": (torch.tensor([1, 17], dtype=torch.int32), r"must lie in \[0, 17\), got 1 to 17"),
    "int64": (torch.tensor([1, 2]), "must be int32"),
    "a matrix": (COLUMNS[None], "must be int32"),
}


@pytest.mark.parametrize(("columns", "message"), BAD_COLUMNS.values(), ids=BAD_COLUMNS)
def test_bad_columns_are_named(columns: Tensor, message: str) -> None:
    with pytest.raises(QuantizationError, match=f"up_proj: outlier_cols {message}"):
        Int8Linear.from_linear(source(), name="up_proj", outlier_cols=columns)
    state = dict(second().state_dict(), outlier_cols=columns)
    low = torch.zeros(N, columns.numel(), dtype=torch.int8)
    with pytest.raises(RuntimeError, match="outlier_cols"):
        second().load_state_dict(dict(state, weight_low=low))


BAD_STATES = {
    "no digits": ({"weight_low": None}, "outlier_cols means nothing without weight_low"),
    "no columns": ({"outlier_cols": None}, "weight_low means nothing without outlier_cols"),
    "wide digits": ({"weight_low": torch.zeros(N, 3)}, r"weight_low must be int8 \[9, 3\]"),
    "too few digits": ({"weight_low": torch.zeros(N, 2).char()}, r"weight_low must be int8 \[9, 3\]"),
    "no codes": ({"weight": None, "SCB": None}, "weight is missing, without which outlier_cols"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_STATES.values(), ids=BAD_STATES)
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("target", [layer, second])
def test_a_bad_state_is_named_and_nothing_is_taken_over(changes, message, assign, target) -> None:
    state = {**second(seed=1).state_dict(), **changes}
    state = {f"0.{key}": value for key, value in state.items() if value is not None}
    model = nn.Sequential(target(seed=2))
    with pytest.raises(RuntimeError, match=f"0.{message}"):
        model.load_state_dict(state, strict=False, assign=assign)
    assert_same_codes_and_scales(model[0], target(seed=2))
    assert model[0].tensors().keys() == target().tensors().keys()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("target", [layer, second, lambda: second(columns=COLUMNS[:1])])
def test_a_state_dict_brings_the_second_digit(assign: bool, target) -> None:
    want, module = second(seed=1), target()
    result = module.load_state_dict(want.state_dict(), assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same_state(module, want)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_without_removes_it(assign: bool) -> None:
    module = second()
    module.load_state_dict(layer(seed=1).state_dict(), assign=assign)
    assert module.tensors().keys() == layer().tensors().keys()
    assert same_bits(module(inputs(5)), layer(seed=1)(inputs(5)))


def test_a_state_dict_of_other_layers_leaves_it() -> None:
    module = nn.Sequential(second(), nn.Linear(N, 2))
    module.load_state_dict({"1.bias": torch.zeros(2)}, strict=False)
    assert_same_state(module[0], second())


def test_assign_fills_a_module_without_data() -> None:
    module = Int8Linear(K, N, device="meta")
    module.load_state_dict(second().state_dict(), assign=True)
    assert_same_state(module, second())


CHANGES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "half, then float": lambda m: m.half().float(),
    "double": lambda m: m.double(),
    "type": lambda m: m.type(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_copies_and_casts_keep_it(change) -> None:
    module = change(second())
    want = second()
    for name in (*NAMES, "weight", "SCB"):
        assert torch.equal(getattr(module, name), getattr(want, name))
        assert getattr(module, name).dtype == getattr(want, name).dtype


def test_moves_without_data() -> None:
    module = second().to("meta")
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    assert module(torch.empty(2, K, device="meta")).shape == (2, N)
    assert module.invalid_state() is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_back_to_a_float_layer_and_gradients(dtype: torch.dtype) -> None:
    module, x = second().to(dtype), inputs(2, 3, dtype=dtype).requires_grad_()
    linear = module.to_float_layer(dtype)
    assert same_bits(linear.weight, module.dequantize(dtype))
    upstream = torch.randn(2, 3, N, generator=torch.Generator().manual_seed(3)).to(dtype)
    module(x).backward(upstream)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {}
    want = upstream.float() @ linear.weight.float()
    torch.testing.assert_close(x.grad.float(), want, **tolerance)
    module.SCB[0] = -1
    assert module.invalid_state() == "SCB holds a negative or non-finite value"
    module.SCB[0], module.outlier_cols = 1, None
    assert module.invalid_state() == "weight_low means nothing without outlier_cols: give both or neither"


def test_compiled_in_one_graph_gives_the_same_bits() -> None:
    module, x = second(), inputs(4)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(x), module(x))
