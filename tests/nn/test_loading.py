"""State dicts of `Int8Linear`: in any order, with and without `assign`, and each way to spoil one."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
from torch import Tensor, nn

from agreement.cases import same_bits
from llmint8 import Int8Linear
from nn.layers import K, N, assert_same_codes_and_scales, inputs, layer


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_state_dict_loads_in_any_order(assign: bool, backwards: bool) -> None:
    want = layer(seed=1)
    items = list(want.state_dict().items())
    target = layer(seed=2)
    result = target.load_state_dict(OrderedDict(items[::-1] if backwards else items), assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same_codes_and_scales(target, want)
    assert same_bits(target(inputs(5)), want(inputs(5)))
    assert not target.weight.requires_grad
    assert isinstance(target.weight, nn.Parameter)


def test_assign_fills_a_module_without_data() -> None:
    target = Int8Linear(K, N, device="meta")
    target.load_state_dict(layer().state_dict(), assign=True)
    assert_same_codes_and_scales(target, layer())


def test_no_weight_format_means_row_major() -> None:
    state = layer(seed=1).state_dict()
    del state["weight_format"]
    target = layer(seed=2)
    target.load_state_dict(state)
    assert_same_codes_and_scales(target, layer(seed=1))


def change(name: str, value: Callable[[Tensor], Tensor] | None) -> Callable[[dict], None]:
    def apply(state: dict) -> None:
        if value is None:
            del state[name]
        else:
            state[name] = value(state[name].clone())

    return apply


def with_first(value: float) -> Callable[[Tensor], Tensor]:
    def apply(t: Tensor) -> Tensor:
        t.view(-1)[0] = value
        return t

    return apply


BAD_STATES = {
    "no scales": (change("SCB", None), "SCB is missing"),
    "no codes": (change("weight", None), "weight is missing"),
    "float weight": (change("weight", lambda t: t.float()), "load the float checkpoint first"),
    "float64 weight": (change("weight", lambda t: t.double()), "load the float checkpoint first"),
    "wide codes": (change("weight", lambda t: t.short()), "int16"),
    "other K": (change("weight", lambda t: t[:, :5]), "size mismatch for"),
    "half scales": (change("SCB", lambda t: t.half()), "SCB is torch.float16"),
    "too few scales": (change("SCB", lambda t: t[:3]), r"SCB is torch.float32 \[3\], not float32 \[9\]"),
    "a column of scales": (change("SCB", lambda t: t[:, None]), r"SCB is torch.float32 \[9, 1\]"),
    "NaN scale": (change("SCB", with_first(float("nan"))), "non-finite"),
    "infinite scale": (change("SCB", with_first(float("inf"))), "non-finite"),
    "negative scale": (change("SCB", with_first(-1.0)), "negative"),
    "tiled": (change("weight_format", with_first(2)), "weight_format is 2"),
    "code -128": (change("weight", with_first(-128)), "code -128"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_STATES.values(), ids=BAD_STATES)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_bad_state_is_named_and_nothing_is_taken_over(
    spoil: Callable[[dict], None], message: str, strict: bool, assign: bool
) -> None:
    model, before = nn.Sequential(layer(seed=2)), layer(seed=2)
    state = dict(layer(seed=1).state_dict())
    spoil(state)
    with pytest.raises(RuntimeError, match=message) as error:
        model.load_state_dict({"0." + k: v for k, v in state.items()}, strict=strict, assign=assign)
    assert "0.weight" in str(error.value) or "0.SCB" in str(error.value)
    if "size mismatch" not in message:  # torch's own check comes after the tensors that fit
        assert_same_codes_and_scales(model[0], before)


def test_a_partial_state_dict_leaves_the_layer() -> None:
    model = nn.Sequential(layer(), nn.Linear(N, 2))
    state = {k: v for k, v in model.state_dict().items() if k.startswith("1.")}
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["0.weight", "0.bias", "0.SCB", "0.weight_format"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)
