"""`Int8Experts` against the float class itself, run with int8 linear layers in place of its own."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agreement.cases import same_bits
from llmint8 import ConfigError, QuantizationError, ops, reference
from llmint8.config import threshold_code
from llmint8.nn import Int8Experts, experts_as_linear, is_experts
from zoo import ZOO

KINDS = ("mixtral", "qwen3_moe", "gpt_oss")


def experts_of(kind: str) -> Any:
    return next(m for m in ZOO[kind].build().modules() if is_experts(m))


def routed(tokens: int = 9, experts: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, 32, generator=generator) * 4
    index = torch.rand(tokens, experts, generator=generator).topk(2).indices
    return x, index, torch.rand(tokens, 2, generator=generator)


def by_hand(source: Any, threshold: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The contract, spelt out: each expert on its tokens, in ascending order."""

    def linear(key: str, expert: int, rows: Tensor) -> Tensor:
        weight = experts_as_linear(source, getattr(source, key))[expert]
        codes, absmax = reference.quantize_weight(weight.detach())
        bias = getattr(source, f"{key}_bias")[expert] if source.has_bias else None
        return ops.linear(rows, codes, absmax, bias, threshold_code(threshold))

    output = torch.zeros_like(x)
    for token in range(len(x)):
        for expert in index[token].sort().values.tolist():
            gated = source._apply_gate(linear("gate_up_proj", expert, x[token : token + 1]))
            y = linear("down_proj", expert, gated)[0]
            output[token] += (y * weights[token, index[token] == expert]).to(x.dtype)
    return output


@pytest.mark.parametrize("threshold", [0.0, 6.0, "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_as_by_hand(kind: str, threshold: Any) -> None:
    source = experts_of(kind)
    module = Int8Experts.from_experts(source, threshold)
    with torch.no_grad():
        assert same_bits(module(*routed()), by_hand(source, threshold, *routed()))


@pytest.mark.parametrize("kind", KINDS)
def test_close_to_the_float_class(kind: str) -> None:
    source = experts_of(kind)
    source.config._experts_implementation = "eager"
    with torch.no_grad():
        want, got = source(*routed()), Int8Experts.from_experts(source)(*routed())
    assert (got - want).abs().max() <= 0.03 * want.abs().max()


def test_a_token_does_not_depend_on_the_others() -> None:
    module = Int8Experts.from_experts(experts_of("mixtral"))
    x, index, weights = routed()
    whole = module(x, index, weights)
    for i in range(len(x)):
        assert same_bits(module(x[i : i + 1], index[i : i + 1], weights[i : i + 1])[0], whole[i])


def test_numbers_beyond_the_experts_mean_none() -> None:
    module = Int8Experts.from_experts(experts_of("mixtral"))
    x, index, weights = routed()
    assert same_bits(module(x, torch.full_like(index, 4), weights), torch.zeros_like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str) -> None:
    source = experts_of(kind)
    module = Int8Experts.from_experts(source)
    back = module.to_float_layer()
    assert type(back) is type(source)
    assert back.state_dict().keys() == source.state_dict().keys()
    for key in module.weights:
        scales = getattr(module, f"{key}_SCB")
        wrong = experts_as_linear(source, getattr(back, key) - getattr(source, key)).abs()
        assert (wrong <= scales[..., None] / 127 * 0.5001).all()
    again = Int8Experts.from_experts(back)
    assert all(torch.equal(getattr(again, key), getattr(module, key)) for key in module.weights)
    back.config._experts_implementation = "eager"
    assert back(*routed()).shape == (9, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_casts_leave_codes_and_scales(dtype: torch.dtype) -> None:
    module = Int8Experts.from_experts(experts_of("gpt_oss"))
    cast = copy.deepcopy(module).to(dtype)
    for key, tensor in module.state_dict().items():
        kept = not key.endswith("_bias")
        assert cast.state_dict()[key].dtype == (tensor.dtype if kept else dtype)
        assert not kept or torch.equal(cast.state_dict()[key], tensor)
    x, index, weights = routed()
    assert cast(x.to(dtype), index, weights.to(dtype)).dtype == dtype


def test_gradients_reach_the_input() -> None:
    module = Int8Experts.from_experts(experts_of("gpt_oss"))
    x, index, weights = routed()
    module(x.requires_grad_(), index, weights).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert module.gate_up_proj.grad is None


def test_state_that_cannot_be_right_is_refused() -> None:
    module = Int8Experts.from_experts(experts_of("mixtral"))
    state = module.state_dict()
    for change, message in (
        ({"down_proj": state["down_proj"].float()}, "not int8"),
        ({"down_proj_SCB": state["down_proj_SCB"][:, :3]}, "not float32"),
        ({"down_proj_SCB": None}, "one is missing"),
    ):
        spoilt = {key: value for key, value in (state | change).items() if value is not None}
        with pytest.raises(RuntimeError, match=message):
            copy.deepcopy(module).load_state_dict(spoilt)
    assert module.load_state_dict(state)


def test_a_bad_weight_or_threshold_is_named() -> None:
    source = experts_of("mixtral")
    with pytest.raises(ConfigError):
        Int8Experts.from_experts(source, -1.0)
    with torch.no_grad():
        source.down_proj[2, 0, 0] = torch.inf
    with pytest.raises(QuantizationError, match=r"layer\.down_proj\[2\] holds a NaN or an infinity"):
        Int8Experts.from_experts(source, name="layer")


def test_what_is_no_experts() -> None:
    assert not is_experts(nn.Linear(3, 3))
    assert not is_experts(nn.Bilinear(3, 3, 3))
    assert not is_experts(Int8Experts.from_experts(experts_of("mixtral")))
