"""Small layers and inputs that the tests of this folder share."""

import torch
from torch import Tensor, nn

from agreement.cases import same_bits
from llmint8 import Int8Linear

N, K = 9, 17


def source(bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(K, N, bias=bias)


def layer(bias: bool = True, seed: int = 0) -> Int8Linear:
    return Int8Linear.from_linear(source(bias, seed))


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, K, generator=torch.Generator().manual_seed(7)) * 3
    x[..., 2] *= 10
    return x.to(dtype)


def assert_same_codes_and_scales(a: Int8Linear, b: Int8Linear) -> None:
    assert torch.equal(a.weight, b.weight)
    assert same_bits(a.SCB, b.SCB)
    assert (a.weight.dtype, a.weight_format.dtype) == (torch.int8, torch.uint8)
    assert int(a.weight_format) == 0
