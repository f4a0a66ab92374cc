"""The layer under bitsandbytes' name: made, filled and read as code for bitsandbytes does it."""

import copy
import io

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from agreement.cases import same_bits
from integrations.bitsandbytes_files import assert_same_state, assert_same_tensors, stored_tensors
from llmint8 import ConfigError, InputError, Int8Linear
from llmint8.integrations.bitsandbytes import Linear8bitLt

X = torch.randn(3, 17, generator=torch.Generator().manual_seed(1)) * 4


def float_layer(bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(17, 9, bias)


def layer(bias: bool = True, threshold: float = 6.0) -> Linear8bitLt:
    return Linear8bitLt(17, 9, bias=bias, has_fp16_weights=False, threshold=threshold)


def assert_same_layer(made: Int8Linear, want: Int8Linear) -> None:
    assert_same_state(made, want)
    assert same_bits(made(X), want(X))


@pytest.mark.parametrize("bias", [True, False])
def test_a_fresh_layer_is_drawn_as_a_linear_layer(bias: bool) -> None:
    want = Int8Linear.from_linear(float_layer(bias))
    torch.manual_seed(0)
    made = layer(bias)
    assert_same_layer(made, want)
    assert (made.in_features, made.out_features, made.index) == (17, 9, None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_float_state_is_quantised_as_it_is_loaded(bias: bool, assign: bool) -> None:
    made = layer(bias)
    made.load_state_dict(float_layer(bias).state_dict(), assign=assign)
    assert_same_layer(made.to("cpu"), Int8Linear.from_linear(float_layer(bias)))


def test_an_assigned_float_weight_is_quantised() -> None:
    source, made = float_layer(), layer()
    made.weight = nn.Parameter(source.weight.detach())
    made.bias = source.bias
    assert made.weight.dtype == torch.int8
    assert not made.weight.requires_grad
    assert_same_layer(made, Int8Linear.from_linear(source))


def test_float_data_is_quantised_by_the_next_move() -> None:
    source, made = float_layer(), layer()
    made.weight.data, made.bias.data = source.weight.data, source.bias.data
    with pytest.raises(InputError, match="weight must be int8"):
        made(X)
    assert_same_layer(made.to("cpu"), Int8Linear.from_linear(source))


def test_an_int8_state_loads_without_a_move_before() -> None:
    want = Int8Linear.from_linear(float_layer(seed=3))
    made = layer()
    made.load_state_dict(want.state_dict())
    assert_same_layer(made, want)
    other = Int8Linear(17, 9)
    other.load_state_dict(made.state_dict())
    assert_same_layer(other, want)


def test_a_state_dict_that_bitsandbytes_saved() -> None:
    stored = stored_tensors()
    name = "model.layers.0.mlp.up_proj."
    state = {key.removeprefix(name): tensor for key, tensor in stored.items() if key.startswith(name)}
    assert state.keys() == {"weight", "SCB", "weight_format"}
    made = Linear8bitLt(32, 40, bias=False, has_fp16_weights=False)
    made.load_state_dict(state)
    assert_same_tensors(made.state_dict(), state)


def test_a_model_of_such_layers_is_filled_from_a_float_one() -> None:
    source = nn.Sequential(float_layer(), nn.ReLU(), nn.Linear(9, 17))
    model = nn.Sequential(layer(), nn.ReLU(), Linear8bitLt(9, 17, has_fp16_weights=False))
    model.load_state_dict(source.state_dict())
    want = nn.Sequential(
        Int8Linear.from_linear(source[0]), source[1], Int8Linear.from_linear(source[2], threshold=0)
    )
    assert same_bits(model(X), want(X))


def test_the_attributes_that_other_code_reads() -> None:
    made = layer(threshold=2.5)
    for now in (made, copy.deepcopy(made), made.to(torch.bfloat16)):
        codes, scales = now.state_dict()["weight"], now.state_dict()["SCB"]
        assert_same_tensors({"CB": now.weight.CB, "SCB": now.weight.SCB}, {"CB": codes, "SCB": scales})
        assert_same_tensors({"CB": now.state.CB, "SCB": now.state.SCB}, {"CB": codes, "SCB": scales})
        assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
        assert now.state.has_fp16_weights is False
        assert now.state.threshold == now.threshold == 2.5
    assert made.state.is_training
    assert not made.eval().state.is_training
    made.state.threshold = 0.0
    assert made.threshold == 0


def test_accelerate_offloads_it() -> None:
    """accelerate knows the name, and clears `state.SCB` after each call."""
    net = nn.Sequential(layer(), nn.ReLU())
    want = net(X)
    cpu_offload(net, execution_device=torch.device("cpu"))
    assert net[0].weight.is_meta
    assert same_bits(net(X), want)
    assert same_bits(net(X), want)
    with pytest.raises(AttributeError, match="assign the weight of the layer"):
        net[0].state.SCB = torch.zeros(9)


def test_a_pickled_layer_is_the_same_layer() -> None:
    made, file = layer(), io.BytesIO()
    made.weight  # noqa: B018 - attaches CB and SCB
    torch.save(made, file)
    file.seek(0)
    assert_same_layer(torch.load(file, weights_only=False), made)


def test_float_weights_for_training_are_refused() -> None:
    with pytest.raises(ConfigError, match="pass has_fp16_weights=False"):
        Linear8bitLt(17, 9)


def test_a_weight_that_is_not_finite_is_named() -> None:
    state = float_layer().state_dict()
    state["weight"][2, 3] = float("nan")
    with pytest.raises(RuntimeError, match="weight holds a NaN or an infinity"):
        layer().load_state_dict(state)


def test_on_the_meta_device_nothing_is_drawn() -> None:
    made = Linear8bitLt(17, 9, has_fp16_weights=False, device="meta")
    assert made.weight.is_meta
    made.load_state_dict(float_layer().state_dict(), assign=True)
    assert_same_layer(made, Int8Linear.from_linear(float_layer(), threshold=0))


def test_it_compiles_as_one_graph() -> None:
    made = layer()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    assert same_bits(compiled(X), made(X))
