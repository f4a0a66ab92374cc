"""`Int8Linear` as a module: its state through casts, moves and copies; forward and backward."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agreement.cases import DTYPES, same_bits
from llmint8 import ConfigError, InputError, Int8Linear, QuantizationError, reference
from llmint8.numerics import DEFAULT_THRESHOLD
from nn.layers import K, N, assert_same_codes_and_scales, inputs, layer, source


def test_state_is_that_of_the_reference() -> None:
    linear = source()
    module = Int8Linear.from_linear(linear)
    codes, absmax = reference.quantize_weight(linear.weight)
    assert torch.equal(module.weight, codes)
    assert same_bits(module.SCB, absmax)
    assert module.bias is linear.bias
    assert list(module.state_dict()) == ["weight", "bias", "SCB", "weight_format"]
    assert not module.weight.requires_grad
    assert module.bias.requires_grad
    assert isinstance(module, nn.Linear)
    assert linear.weight.dtype == torch.float32  # the source stays what it was


def test_a_fresh_module_is_zero() -> None:
    module = Int8Linear(K, N)
    assert torch.equal(module(inputs(3)), torch.zeros(3, N))
    assert Int8Linear(K, N, bias=False).bias is None
    module.reset_parameters()
    assert not module.weight.any()


def test_tensors_that_something_keeps_elsewhere() -> None:
    """As wrappers that shard do, which take parameters away and set plain attributes."""
    module, x = layer(True), inputs(3)
    want, bias, scales = module(x), module.bias.detach(), module.SCB
    del module.bias, module.SCB
    module.bias, module.SCB = bias, scales
    assert "bias" not in module._parameters
    assert same_bits(module(x), want)


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_taken_over(training: bool) -> None:
    assert Int8Linear.from_linear(source().train(training)).training == training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_dtypes(dtype: torch.dtype) -> None:
    linear = source().to(dtype)
    module = Int8Linear.from_linear(linear)
    codes, absmax = reference.quantize_weight(linear.weight.float())
    assert torch.equal(module.weight, codes)
    assert same_bits(module.SCB, absmax)
    assert module.bias.dtype == dtype
    assert module.float()(inputs(3)).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 0, 3), (0,), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_shape_is_rows(dtype: torch.dtype, shape: tuple[int, ...], bias: bool) -> None:
    module, x = layer(bias).to(dtype), inputs(*shape, dtype=dtype)
    want = reference.linear(x.reshape(-1, K), module.weight, module.SCB, module.bias, DEFAULT_THRESHOLD)
    assert same_bits(module(x), want.reshape(*shape, N))


@pytest.mark.parametrize(("k", "n"), [(0, 3), (3, 0), (0, 0)])
def test_layers_without_elements(k: int, n: int) -> None:
    module = Int8Linear(k, n)
    if n:
        module.bias.data.fill_(2.5)
    y = module(torch.ones(5, k))
    assert torch.equal(y, torch.full((5, n), 2.5))
    module.load_state_dict(copy.deepcopy(module.state_dict()))


def test_strides_of_the_input_do_not_matter() -> None:
    module = layer()
    wide = torch.randn(2 * K, 6, generator=torch.Generator().manual_seed(1)) * 5
    for view in (wide[:K].T, wide[::2].T, wide.T[:, :K], wide[:K, :1].T.expand(4, K)):
        assert not view.is_contiguous()
        assert same_bits(module(view), module(view.contiguous()))


def test_the_input_is_not_modified() -> None:
    module, x = layer(), inputs(7)
    before, version = x.clone(), x._version
    module(x)
    assert x._version == version
    assert same_bits(x, before)


CASTS: dict[str, Callable[[Int8Linear], nn.Module]] = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "to float16": lambda m: m.to(torch.float16),
    "to float16, cpu": lambda m: m.to("cpu", torch.float16),
    "to like a tensor": lambda m: m.to(torch.ones(1, dtype=torch.bfloat16)),
    "type": lambda m: m.type(torch.float16),
    "half, then float": lambda m: m.half().float(),
    "in a parent": lambda m: nn.Sequential(m).half()[0],
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_casts_reach_the_bias_alone(cast: Callable[[Int8Linear], Int8Linear]) -> None:
    module, plain = layer(), nn.Linear(K, N)
    module.SCB[0] = 1.0000001  # no half type has this number
    want = copy.deepcopy(module)
    got = cast(module)
    assert_same_codes_and_scales(got, want)
    assert got.bias.dtype == cast(plain).bias.dtype
    assert not got.weight.requires_grad


def test_moves_without_data() -> None:
    for module in (layer().to("meta"), layer().to(device="meta", dtype=torch.bfloat16)):
        dtypes = {name: t.dtype for name, t in module.state_dict().items() if name != "bias"}
        assert dtypes == {"weight": torch.int8, "SCB": torch.float32, "weight_format": torch.uint8}
        assert {t.device.type for t in module.state_dict().values()} == {"meta"}
        assert module(torch.empty(2, K, device="meta")).shape == (2, N)
    empty = layer().to("meta").to_empty(device="cpu")
    empty.load_state_dict(layer().state_dict())
    assert_same_codes_and_scales(empty, layer())


def through_torch_save(module: Int8Linear) -> Int8Linear:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": through_torch_save,
    "in a deepcopied parent": lambda m: copy.deepcopy(nn.Sequential(m))[0],
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("threshold", [0.0, 3.5, "auto"])
def test_copies_are_equal_and_independent(duplicate, threshold) -> None:
    module = layer()
    module.threshold = threshold
    twin = duplicate(module)
    assert_same_codes_and_scales(twin, module)
    assert twin.threshold == threshold
    assert same_bits(twin(inputs(5)), module(inputs(5)))
    twin.threshold, twin.weight.data[0, 0] = 1.0, 0
    assert module.threshold == threshold
    assert module.weight[0, 0] != 0


def test_the_threshold_counts_from_the_next_call_on() -> None:
    module, x = layer(), inputs(5)
    for threshold, code in [(0, 0.0), (6.0, 6.0), ("auto", -1.0), (30, 30.0), (0.0, 0.0)]:
        module.threshold = threshold
        assert module.threshold == threshold
        assert same_bits(module(x), reference.linear(x, module.weight, module.SCB, module.bias, code))
        assert f"threshold={module.threshold}" in repr(module)
    assert Int8Linear(K, N).threshold == 6.0


@pytest.mark.parametrize("bad", [-1, -1.0, float("nan"), float("inf"), "Auto", "6", None, True, 10**400])
def test_a_bad_threshold_is_refused_and_changes_nothing(bad: object) -> None:
    module = layer()
    with pytest.raises(ConfigError, match=r"threshold must be .*got"):
        module.threshold = bad
    assert module.threshold == 6.0
    with pytest.raises(ConfigError):
        Int8Linear.from_linear(source(), threshold=bad)


def test_what_cannot_be_converted() -> None:
    with pytest.raises(QuantizationError, match=r"up_proj.weight: the module is int8 already"):
        Int8Linear.from_linear(layer(), name="up_proj.weight")
    with pytest.raises(QuantizationError, match="no data"):
        Int8Linear.from_linear(nn.Linear(3, 3, device="meta"))
    linear = source()
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match=r"^here holds a NaN"):
        Int8Linear.from_linear(linear, name="here")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, K + 1), f"must be {K}"),
        (torch.ones(2, K).double(), "cast it first"),
        (torch.ones(2, K).int(), "cast it first"),
        (torch.tensor(1.0), f"must be {K}"),
    ],
)
def test_wrong_inputs_are_named(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer()(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_reach_input_and_bias_alone(dtype: torch.dtype) -> None:
    module, x = layer().to(dtype), inputs(2, 3, dtype=dtype).requires_grad_()
    upstream = torch.randn(2, 3, N, generator=torch.Generator().manual_seed(3)).to(dtype)
    module(x).backward(upstream)
    assert x.grad.dtype == module.bias.grad.dtype == dtype
    assert module.weight.grad is None
    want = upstream.float() @ module.dequantize(dtype).float()
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {}
    torch.testing.assert_close(x.grad.float(), want, **tolerance)
    torch.testing.assert_close(module.bias.grad.float(), upstream.float().sum((0, 1)), **tolerance)


def test_frozen_bias_and_checkpointed_forward() -> None:
    module, x = layer().requires_grad_(False), inputs(4).requires_grad_()
    module(x).sum().backward()
    first, x.grad = x.grad, None
    torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False).sum().backward()
    assert same_bits(x.grad, first)
    assert module.bias.grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_back_to_a_float_layer(dtype: torch.dtype) -> None:
    module = layer().eval()
    linear = module.to_float_layer(dtype)
    assert type(linear) is nn.Linear
    assert same_bits(linear.weight, module.dequantize(dtype))
    assert linear.bias is module.bias
    assert not linear.training
    assert Int8Linear.from_linear(module.to_float_layer()).weight.equal(module.weight)


def test_close_to_what_it_replaces() -> None:
    linear, x = source(), inputs(33)
    error = (Int8Linear.from_linear(linear)(x) - linear(x)).abs().max()
    # Half a step of the weight and of the activation, over K terms, is the worst that rounding can do.
    step = linear.weight.abs().max() / 127 / 2 * x.abs().sum(1).max()
    step += x.abs().max() / 127 / 2 * linear.weight.abs().sum(1).max()
    assert 0 < error < step
