"""`torch.compile` and `torch.export` see one operator a layer: no graph break, any length, the same bits."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from agreement.cases import same_bits
from llmint8 import Int8Linear, quantize_model
from nn.layers import K, N, inputs, layer, source
from zoo import ZOO

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
LENGTHS = (7, 2, 5, 12)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps what it is asked to compile, and runs it as it is."""

    def __init__(self) -> None:
        self.seen: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.seen.append(graph)
        return graph.forward

    def operators(self) -> list[int]:
        """How many int8 operators each graph calls."""
        return [
            sum("llmint8" in str(node.target) for node in graph.graph.nodes if node.op == "call_function")
            for graph in self.seen
        ]


def compiled(module: nn.Module, graphs: Graphs | str, dynamic: bool | None = None) -> Callable[..., Any]:
    function: Callable[..., Any] = torch.compile(module, backend=graphs, fullgraph=True, dynamic=dynamic)
    return function


@DTYPES
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_layer_is_one_operator_and_returns_the_same_bits(
    dtype: torch.dtype, mode: Callable[[], Any], bias: bool
) -> None:
    graphs, module = Graphs(), layer(bias)
    with mode():
        for shape in ((3,), (), (2, 3)):
            torch._dynamo.reset()
            x = inputs(*shape, dtype=dtype)
            assert same_bits(compiled(module, graphs, dynamic=False)(x), module(x))
    assert graphs.operators() == [1, 1, 1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(("dynamic", "compilations"), [(True, 1), (None, 2)])
def test_lengths_do_not_compile_again(
    mode: Callable[[], Any], dynamic: bool | None, compilations: int
) -> None:
    """Left to itself torch takes the first length for a constant, and the second for a variable."""
    graphs, module = Graphs(), layer()
    run = compiled(module, graphs, dynamic)
    with mode():
        for length in LENGTHS:
            x = inputs(2, length)
            assert same_bits(run(x), module(x))
    assert graphs.operators() == [1] * compilations


def test_a_threshold_that_changes_is_seen() -> None:
    module, x = layer(), inputs(4)
    run = compiled(module, "eager")
    for threshold in (6.0, "auto", 0, 6.0):
        module.threshold = threshold
        assert same_bits(run(x), module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_under_compilation_have_the_same_bits(dtype: torch.dtype) -> None:
    module = nn.Sequential(source(), nn.Tanh(), nn.Linear(N, K), layer(seed=1)).to(dtype)
    results = []
    for run in (module, compiled(module, "aot_eager", dynamic=True)):
        for length in LENGTHS[:2]:
            module.zero_grad()
            x = inputs(length, dtype=dtype).requires_grad_()
            run(x).square().sum().backward()
            results.append([x.grad, *(p.grad for p in module.parameters() if p.requires_grad)])
    for eager, traced in zip(results[:2], results[2:], strict=True):
        assert len(eager) == 6
        assert all(same_bits(a, b) for a, b in zip(eager, traced, strict=True))


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.arange(batch * length).reshape(batch, length) % tiny.VOCABULARY


def int8_llama(dtype: torch.dtype = torch.float32) -> transformers.LlamaForCausalLM:
    model = tiny.tiny_llama(num_hidden_layers=1)
    quantize_model(model)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_whole_model_compiles_once_for_all_lengths(dtype: torch.dtype) -> None:
    graphs, model = Graphs(), int8_llama(dtype)
    run = compiled(model, graphs, dynamic=True)
    with torch.no_grad():
        for length in LENGTHS:
            assert same_bits(run(tokens(length)).logits, model(tokens(length)).logits)
    assert graphs.operators() == [sum(isinstance(module, Int8Linear) for module in model.modules())]


def test_a_mixture_compiles_once_for_all_lengths_and_choices() -> None:
    graphs, model = Graphs(), ZOO["mixtral"].build()
    quantize_model(model)
    run = compiled(model, graphs, dynamic=True)
    with torch.no_grad():
        for length in LENGTHS:
            ids = torch.arange(length)[None]
            assert same_bits(run(ids).logits, model(ids).logits)
    assert len(graphs.operators()) == 1


def test_a_whole_model_trains_under_compilation() -> None:
    grads = []
    for wrap in (lambda model: model, lambda model: compiled(model, "aot_eager", dynamic=False)):
        model = int8_llama()
        wrap(model)(tokens(6), labels=tokens(6)).loss.backward()
        grads.append(model.model.embed_tokens.weight.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[1], grads[0])  # decomposed norms and softmax round in another order


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_the_default_backend() -> None:
    module = nn.Sequential(
        nn.ReLU(), layer(), nn.ReLU()
    )  # nothing that another order of rounding could change
    run = torch.compile(module, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for length in LENGTHS:
            assert same_bits(run(inputs(length)), module(inputs(length)))


def through_a_file(program: torch.export.ExportedProgram) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@DTYPES
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_exported_layer_takes_any_batch_and_length(dtype: torch.dtype, mode: Callable[[], Any]) -> None:
    module, sizes = layer(), {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with mode():
        program = torch.export.export(module, (inputs(2, 3, dtype=dtype),), dynamic_shapes=(sizes,))
        loaded = through_a_file(program)
        assert sum("llmint8.linear" in str(node.target) for node in program.graph.nodes) == 1
        assert program.state_dict.keys() == module.state_dict().keys()
        for batch, length in ((2, 3), (4, 9), (3, 2)):
            x = inputs(batch, length, dtype=dtype)
            assert same_bits(loaded(x), module(x))


class Logits(nn.Module):
    """Tokens to logits, without what transformers wraps around them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def test_an_exported_model_takes_any_batch_and_length() -> None:
    model = Logits(int8_llama())
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=256)}
    with torch.no_grad():
        program = torch.export.export(model, (tokens(6),), dynamic_shapes=(sizes,), strict=False)
        loaded = through_a_file(program)
        for batch, length in ((2, 6), (3, 11), (5, 4)):
            assert same_bits(loaded(tokens(length, batch)), model(tokens(length, batch)))


def test_shapes_are_known_without_data() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as fake, torch.no_grad():
        module = Int8Linear(K, N)
        output = module(torch.empty(5, 3, K, dtype=torch.bfloat16))
        assert output.fake_mode is fake
    assert (output.shape, output.dtype) == ((5, 3, N), torch.bfloat16)
    with torch.inference_mode():
        output = Int8Linear(K, N, device="meta")(torch.empty(5, 3, K, device="meta"))
    assert (output.shape, output.device.type) == ((5, 3, N), "meta")


class Watch(TorchDispatchMode):
    """Notes each operator that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_whoever_watches_operators_sees_the_layer(mode: Callable[[], Any]) -> None:
    """Without a watcher a kernel may be called past the dispatcher; counters and tracers must not miss it."""
    module, x = layer(), inputs(4)
    with mode():
        want = module(x)
        with Watch() as watch:
            assert same_bits(module(x), want)
        assert watch.names.count("llmint8.linear.default") == 1
        graph = make_fx(module)(x)
        assert same_bits(graph(x), want)
        assert any(node.target is torch.ops.llmint8.linear.default for node in graph.graph.nodes)
