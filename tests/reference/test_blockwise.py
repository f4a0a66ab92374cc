"""The dynamic code book and block-wise quantisation, against their definition."""

import pytest
import torch

from llmint8 import reference
from llmint8.errors import InputError


@pytest.mark.parametrize("signed", [True, False])
def test_code_book(signed: bool) -> None:
    book = reference.dynamic_code_book(signed)
    assert book.shape == (256,)
    assert torch.equal(book, book.sort().values)
    assert len(book.unique()) == 256
    assert book[-1] == 1
    assert book[127 if signed else 0] == 0
    positive = book[book > 0]
    for decade in range(7):
        low, high = 10.0 ** (decade - 7), 10.0 ** (decade - 6)
        inside = positive[(positive > low) & (positive < high)].double()
        items = 2 ** (decade + (not signed))
        exact = low + (high - low) * (torch.arange(items) + 0.5).double() / items
        torch.testing.assert_close(inside, exact, rtol=1e-6, atol=0)
    if signed:
        assert torch.equal(book[:127], -book[128:255].flip(0))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_nearest_code(signed: bool, size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    x = x if signed else x**2
    codes, absmax = reference.quantize_blockwise(x, signed)
    assert absmax.shape == (-(-size // 256),)
    book = reference.dynamic_code_book(signed)
    for block, (values, own) in enumerate(zip(x.split(256), codes.split(256), strict=True)):
        assert absmax[block] == values.abs().max()
        distance = (values[:, None] * (1 / absmax[block]) - book).abs()
        assert torch.equal(distance.gather(1, own[:, None].long())[:, 0], distance.amin(1))
    back = reference.dequantize_blockwise(codes, absmax, signed)
    again = reference.quantize_blockwise(back, signed)
    assert torch.equal(again[0][x == x.max()], codes[x == x.max()])
    assert ((back - x).abs() <= 0.01 * absmax.repeat_interleave(256)[:size]).all()


def test_ties_go_toward_zero() -> None:
    book = reference.dynamic_code_book(True)
    middle = (book[200] + book[201]) / 2
    codes, _ = reference.quantize_blockwise(torch.stack([middle, -middle, torch.tensor(1.0)]))
    assert codes.tolist() == [200, 254 - 200, 255]


def test_special_blocks() -> None:
    x = torch.zeros(4 * 256)
    x[256], x[512], x[768] = 1e-39, float("nan"), float("-inf")
    codes, absmax = reference.quantize_blockwise(x)
    assert (codes == 127).all()
    assert absmax[:2].tolist() == [0, 0]
    assert absmax[2:].isnan().all()
    assert reference.dequantize_blockwise(codes, absmax)[512:].isnan().all()


def test_shape_is_kept_and_the_input_too() -> None:
    x = torch.randn(3, 100, 2)
    version = x._version
    codes, absmax = reference.quantize_blockwise(x)
    assert codes.shape == x.shape
    assert reference.dequantize_blockwise(codes, absmax).shape == x.shape
    assert x._version == version


def test_integers_are_refused() -> None:
    with pytest.raises(InputError, match="int64"):
        reference.quantize_blockwise(torch.arange(4))
