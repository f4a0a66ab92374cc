"""The gradient on GPUs: within the roundings that it makes, of the product in float64."""

from __future__ import annotations

import pytest
import torch

from agreement.cases import DTYPES, low_digit
from backends.triton.conftest import DEVICE
from llmint8 import reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 40, 33), (33, 65, 17), (40, 7, 70)])
@pytest.mark.parametrize("p", [0, 1, 9])
def test_gradient(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, m: int, n: int, k: int, p: int
) -> None:
    from llmint8.backends.triton import gradient

    if DEVICE == "cpu":  # the interpreter multiplies the bits of bfloat16 as integers
        monkeypatch.setitem(gradient.PRODUCTS, torch.bfloat16, gradient.PRODUCTS[torch.float32])
    generator = torch.Generator().manual_seed(m * k + p)
    grad = torch.randn(m, n, generator=generator).to(dtype)
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    absmax = torch.rand(n, generator=generator)
    columns = low = None
    if p:
        columns, low = low_digit(k, n, min(p, k), generator)
    floats = reference.dequantize_weight(weight, absmax, dtype, columns, low).double()
    exact = grad.double() @ floats
    sizes = grad.double().abs() @ floats.abs()
    given = (t if t is None else t.to(DEVICE) for t in (grad, weight, absmax, columns, low))
    found = gradient.input_gradient(*given)
    assert found.dtype == dtype
    error = (found.cpu().double() - exact).abs()
    bound = (n + 2) * 2.0**-24 * sizes + torch.finfo(dtype).eps * sizes + torch.finfo(dtype).tiny
    assert bool((error <= bound).all())
