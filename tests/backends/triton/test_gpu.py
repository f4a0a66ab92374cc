"""On a real GPU: operators find the kernels, graphs replay, and each layer of a model has the CPU's bits."""

from __future__ import annotations

import copy

import pytest
import torch

from agreement.cases import random_case, same_bits
from llmint8 import Int8Config, ops, quantize_model
from llmint8.nn import Int8Linear
from llmint8.optim import AdamW8bit
from tiny import tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def on_gpu(case) -> tuple:
    return tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in case.arguments)


def test_the_kernels_run() -> None:
    from llmint8.backends import status

    assert [row.active for row in status() if row.name == "triton"] == [True]


@pytest.mark.parametrize("seed", range(24))
def test_operators_take_the_kernels(seed: int) -> None:
    case = random_case(seed)
    assert same_bits(ops.linear(*on_gpu(case)).cpu(), ops.reference_linear(*case.arguments)), str(case)


@pytest.mark.parametrize("m", [1, 64])
def test_a_graph_replays_with_other_outliers(m: int) -> None:
    generator = torch.Generator().manual_seed(m)
    weight = torch.randint(-127, 128, (96, 320), generator=generator).to(torch.int8)
    absmax = torch.rand(96, generator=generator)
    x = torch.empty(m, 320, dtype=torch.bfloat16, device="cuda")
    arguments = weight.cuda(), absmax.cuda(), None, 6.0
    ops.linear(x, *arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.linear(x, *arguments)
    for _ in range(1000):
        rows = torch.randn(m, 320, generator=generator)
        rows[torch.rand(m, 320, generator=generator) < 0.007] *= 30
        x.copy_(rows)
        graph.replay()
        want = ops.reference_linear(rows.bfloat16(), weight, absmax, None, 6.0)
        assert same_bits(y.cpu(), want)


def test_compiled_with_graphs() -> None:
    """`torch.compile(mode="reduce-overhead")` puts the kernels into graphs of its own."""
    generator = torch.Generator().manual_seed(5)
    layers = [Int8Linear.from_weight(torch.randn(64, 64, generator=generator)) for _ in range(2)]
    model = torch.nn.Sequential(*layers)
    compiled = torch.compile(copy.deepcopy(model).cuda(), mode="reduce-overhead", fullgraph=True)
    with torch.inference_mode():
        for m in (1, 1, 1, 40, 40, 40):
            x = torch.randn(m, 64, generator=generator).bfloat16()
            x[:, ::9] *= 30
            assert same_bits(compiled(x.cuda()).cpu(), model(x))


def test_optimizers_take_the_kernel() -> None:
    """Without Triton's interpreter: `llmint8.optim` on a GPU gives the weights of the CPU."""
    generator = torch.Generator().manual_seed(6)
    start, grads = torch.randn(9000, generator=generator), torch.randn(5, 9000, generator=generator)
    ends = []
    for device in ("cpu", "cuda"):
        parameter = torch.nn.Parameter(start.clone().to(device))
        optimizer = AdamW8bit([parameter], lr=1e-2)
        for grad in grads:
            parameter.grad = grad.to(device)
            optimizer.step()
        ends.append(parameter.detach().cpu())
    assert torch.equal(*ends)


def test_generate_and_every_layer() -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    quantize_model(model, Int8Config("auto", outlier_weights="int16"), calibration_ids=torch.arange(20)[None])
    model.cuda()
    checked = []

    def compare(module: Int8Linear, args: tuple, output: torch.Tensor) -> None:
        low = module.outlier_cols, module.weight_low
        state = [None if t is None else t.cpu() for t in (module.weight, module.SCB, module.bias, *low)]
        want = ops.reference_linear(args[0].cpu(), *state[:3], module._threshold_code, *state[3:])
        assert same_bits(output.cpu(), want)
        checked.append(module)

    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.register_forward_hook(compare)
    model.generate(torch.arange(12, device="cuda")[None], max_new_tokens=4, do_sample=False)
    assert checked
