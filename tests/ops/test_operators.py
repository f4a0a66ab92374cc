"""The operators as torch sees them: schema, shapes, autograd, compile, and what wrong arguments get."""

import pytest
import torch
from torch import Tensor

from agreement.cases import DTYPES, same_bits
from llmint8 import InputError, ops, reference


def arguments(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 24, generator=generator).to(dtype)
    x[..., 3] *= 20
    weight = torch.randint(-127, 128, (7, 24), generator=generator).to(torch.int8)
    absmax = torch.rand(7, generator=generator)
    return x, weight, absmax, torch.randn(7, generator=generator) if bias else None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 6.0, -1.0])
def test_linear_passes_opcheck(dtype: torch.dtype, bias: bool, threshold: float) -> None:
    x, *rest = arguments(dtype, bias)
    torch.library.opcheck(ops.linear, (x, *rest, threshold))
    torch.library.opcheck(ops.linear, (x.requires_grad_(), *rest, threshold))


LOW_DIGIT = (
    torch.tensor([0, 3, 23], dtype=torch.int32),
    torch.randint(-128, 128, (7, 3), generator=torch.Generator().manual_seed(4)).to(torch.int8),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_with_a_second_weight_digit_passes_opcheck(dtype: torch.dtype) -> None:
    x, *rest = arguments(dtype)
    torch.library.opcheck(ops.linear, (x, *rest, 6.0, *LOW_DIGIT))
    torch.library.opcheck(ops.linear, (x.requires_grad_(), *rest, 6.0, *LOW_DIGIT))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantize_rows_passes_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(ops.quantize_rows, (arguments(dtype)[0][0], 6.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_in_one_graph_gives_the_same_bits(dtype: torch.dtype) -> None:
    x, *rest = arguments(dtype)
    compiled = torch.compile(lambda x: ops.linear(x, *rest, 6.0), fullgraph=True, backend="aot_eager")
    eager = ops.linear(x, *rest, 6.0)
    assert same_bits(compiled(x), eager)
    assert same_bits(compiled(x[:, :3]), eager[:, :3])


def test_compiled_by_the_default_compiler_gives_the_same_bits() -> None:
    x, *rest = arguments()
    compiled = torch.compile(lambda x: ops.linear(x, *rest, 6.0) + 1, fullgraph=True)
    assert same_bits(compiled(x), ops.linear(x, *rest, 6.0) + 1)


def test_inference_mode_and_no_grad_give_the_same_bits() -> None:
    x, *rest = arguments()
    want = ops.linear(x, *rest, 6.0)
    with torch.inference_mode():
        assert same_bits(ops.linear(x, *rest, 6.0), want)
    with torch.no_grad():
        assert same_bits(ops.linear(x.requires_grad_(), *rest, 6.0), want)


def test_meta_tensors_give_shapes() -> None:
    x, *rest = (t.to("meta") for t in arguments(torch.bfloat16))
    y = ops.linear(x, *rest, 6.0)
    assert (y.device.type, y.dtype, y.shape) == ("meta", torch.bfloat16, (2, 5, 7))


def test_gradient_is_that_of_the_dequantised_weight() -> None:
    x, weight, absmax, bias = arguments()
    x, bias = x.requires_grad_(), bias.requires_grad_()
    upstream = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    ops.linear(x, weight, absmax, bias, 6.0).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ reference.dequantize_weight(weight, absmax))
    torch.testing.assert_close(bias.grad, upstream.sum((0, 1)))


def test_gradient_counts_the_second_weight_digit() -> None:
    x, weight, absmax, bias = arguments()
    x = x.requires_grad_()
    upstream = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    ops.linear(x, weight, absmax, bias, 6.0, *LOW_DIGIT).backward(upstream)
    floats = weight.float()
    floats[:, LOW_DIGIT[0].long()] += LOW_DIGIT[1].float() / 256
    torch.testing.assert_close(x.grad, upstream @ (floats * (absmax / 127)[:, None]))


WRONG_LOW_DIGITS = {
    "no digits": (LOW_DIGIT[0], None, "give both or neither"),
    "no columns": (None, LOW_DIGIT[1], "give both or neither"),
    "int64 columns": (LOW_DIGIT[0].long(), LOW_DIGIT[1], "outlier_cols must be int32 [P] with P at most 24"),
    "a matrix of columns": (LOW_DIGIT[0][None], LOW_DIGIT[1], "outlier_cols must be int32 [P]"),
    "too many columns": (torch.arange(25).int(), torch.zeros(7, 25).char(), "P at most 24"),
    "int32 digits": (LOW_DIGIT[0], LOW_DIGIT[1].int(), "weight_low must be int8 [7, 3]"),
    "too few digits": (LOW_DIGIT[0], LOW_DIGIT[1][:, :2], "weight_low must be int8 [7, 3]"),
}


@pytest.mark.parametrize(("columns", "low", "message"), WRONG_LOW_DIGITS.values(), ids=WRONG_LOW_DIGITS)
def test_wrong_second_digits_are_named(columns: Tensor | None, low: Tensor | None, message: str) -> None:
    x, *rest = arguments()
    for call in (ops.linear, ops.call_linear):
        with pytest.raises(InputError) as error:
            call(x, *rest, 6.0, columns, low)
        assert message in str(error.value)


WRONG = {
    "float64 input": ("x", lambda t: t.double(), "cast it first"),
    "integer input": ("x", lambda t: t.int(), "float32, float16 or bfloat16"),
    "another K": ("x", lambda t: t[..., :5], "must be 24"),
    "float weight": ("weight", lambda t: t.float(), "weight must be int8"),
    "flat weight": ("weight", lambda t: t[0], "weight must be int8"),
    "half scales": ("absmax", lambda t: t.half(), "SCB must be float32 [7]"),
    "too few scales": ("absmax", lambda t: t[:3], "SCB must be float32 [7]"),
    "too few biases": ("bias", lambda t: t[:3], "bias must be a float [7]"),
    "integer bias": ("bias", lambda t: t.int(), "bias must be a float [7]"),
}


@pytest.mark.parametrize(("name", "change", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(name: str, change, message: str, device: str) -> None:
    given = dict(zip(("x", "weight", "absmax", "bias"), arguments(), strict=True))
    given[name] = change(given[name])
    with pytest.raises(InputError) as error:
        ops.linear(*(t.to(device) for t in given.values()), 6.0)
    assert message in str(error.value)


def test_quantize_rows_wants_a_matrix() -> None:
    with pytest.raises(InputError, match="two dimensions"):
        ops.quantize_rows(torch.ones(3), 0.0)
