"""How a linear layer of a shape runs on a GPU: kernels with their constants, made once for each shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from llmint8.backends.triton import tiles
from llmint8.backends.triton.features import features_of
from llmint8.backends.triton.kernels.few_rows import few_rows_kernel
from llmint8.backends.triton.kernels.gather import gather_kernel, list_kernel
from llmint8.backends.triton.kernels.many_rows import many_rows_kernel
from llmint8.backends.triton.kernels.rows import digits_kernel
from llmint8.backends.triton.kernels.some_rows import some_rows_kernel
from llmint8.backends.triton.launch import Launch

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
#: A fused multiplication and addition rounds once where the contract rounds twice.
EXACT = {"enable_fp_fusion": False}


class Call(NamedTuple):
    """What a plan is made for. x [m, k] of dtype, weight [n, k], p columns with a second weight digit.

    rule: of outliers, see `kernels.rows`. in_words: whether the weight can be read in words of four.
    """

    dtype: torch.dtype
    rule: int
    bias: torch.dtype | None
    m: int
    n: int
    k: int
    p: int
    in_words: bool
    device: torch.device


class Operands(NamedTuple):
    """The tensors of a call as kernels want them: contiguous, and one in place of each that is absent.

    y: as integers of the same size.
    """

    x: Tensor
    weight: Tensor
    absmax: Tensor
    bias: Tensor
    columns: Tensor
    low: Tensor
    y: Tensor
    threshold: float


@lru_cache(maxsize=4096)
def plan(call: Call) -> Callable[[Operands], None]:
    """What runs such a call."""
    few = call.m <= tiles.FEW_ROWS and call.k <= tiles.FEW_ROWS_MOST_K and call.p <= tiles.FEW_ROWS_MOST_P
    if few and call.in_words and features_of(call.device).dot4 is not None:
        return _FewRows(call)
    return _ManyRows(call) if tiles.are_many(call.m, call.n) else _SomeRows(call)


def _constants(call: Call) -> dict[str, Any]:
    return {
        "RULE": call.rule, "HAS_BIAS": call.bias is not None, "HAS_LOW": call.p > 0,
        "DTYPE": DTYPES[call.dtype], **EXACT,
    }  # fmt: skip


def tile_constants(tile: tiles.Tile) -> dict[str, int]:
    """The constants and options of a tile."""
    return {
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


class _FewRows:
    def __init__(self, call: Call) -> None:
        features, tile = features_of(call.device), tiles.few_rows_tile(call.k)
        self._sizes = call.m, call.n, call.k, call.p
        self._programs = min(tiles.ceil_div(call.n, tile.n), tile.programs * features.processors)
        self._launch = Launch(few_rows_kernel, {
            **_constants(call), "NATIVE": features.dot4, "ROWS": tiles.power_of_2(call.m),
            "BLOCK_N": tile.n, "WORDS": tiles.power_of_2(call.k // 4), "BLOCK_P": tiles.BLOCK_P,
            "num_warps": tile.warps,
        })  # fmt: skip

    def __call__(self, o: Operands) -> None:
        tensors = o.x, o.weight.view(torch.int32), o.absmax, o.bias, o.columns, o.low, o.y
        self._launch(self._programs, tensors, (*self._sizes, o.threshold))


class _Rows:
    """The launches in front of the product: rows become digits, and columns come to lie side by side.

    counts: of counters that become 0. found: whether columns with a high digit are gathered.
    """

    def __init__(self, call: Call, tile: tiles.Tile, counts: int, found: bool) -> None:
        self.call, self._counts, self._found = call, counts, found
        early = features_of(call.device).early
        self.padded_k = tiles.ceil_div(call.k, tiles.BLOCK_P) * tiles.BLOCK_P
        self.padded_p = tiles.ceil_div(call.p, 16) * 16
        self.most = tiles.ceil_div(call.k, 2 * tiles.BLOCK_P) * tiles.BLOCK_P
        block = min(tiles.MARKED_ROW_BLOCK if found else tiles.ROW_BLOCK, tiles.power_of_2(call.k))
        # A kernel may start before the one in front of it is done.
        self.follows = {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
        self._digits = Launch(digits_kernel, {
            "RULE": call.rule, "MARK": found, "EARLY": early, "BLOCK_K": block,
            "num_warps": tiles.row_warps(block), **EXACT,
        })  # fmt: skip
        self._list = Launch(list_kernel, {**self.follows, "BLOCK_K": tiles.LIST_BLOCK})
        gather = {**self.follows, "BLOCK_M": tiles.GATHER_ROWS, "BLOCK_P": tiles.BLOCK_P}
        self._gather = Launch(gather_kernel, {"COUNTED": False, **gather})
        self._gather_found = Launch(gather_kernel, {"COUNTED": True, **gather})
        self.constants = {
            **_constants(call), **tile_constants(tile), **self.follows, "BLOCK_P": tiles.BLOCK_P,
            "GROUP": tiles.GROUP,
        }  # fmt: skip

    def digits(self, o: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """lo and hi, int8 [m, padded_k], the scales of rows, the counters, and the marks of columns."""
        m, k, device = self.call.m, self.call.k, self.call.device
        lo = torch.empty((m, self.padded_k), dtype=torch.int8, device=device)
        hi = torch.empty((m, self.padded_k), dtype=torch.int8, device=device)
        scales = torch.empty(m, dtype=torch.float32, device=device)
        counters = torch.empty(self._counts, dtype=torch.int32, device=device) if self._counts else scales
        marks = torch.zeros(k + 1, dtype=torch.int32, device=device) if self._found else scales
        numbers = k, self.padded_k, o.threshold, self._counts
        self._digits(m, (o.x, lo, hi, scales, counters, marks), numbers)
        return lo, hi, scales, counters, marks

    def low(self, o: Operands) -> Tensor:
        """The second weight digits, in rows that are read in words; what fills them up meets digits of 0."""
        if self.call.p == self.padded_p:
            return o.low
        padded = torch.empty((self.call.n, self.padded_p), dtype=torch.int8, device=self.call.device)
        padded[:, : self.call.p] = o.low
        return padded

    def second(self, lo: Tensor, hi: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Digits of the columns with a second weight digit."""
        if not self.call.p:
            return lo, hi
        return self._gathered(self._gather, lo, hi, columns, self.call.p, self.padded_p)

    def found(self, weight: Tensor, hi: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Marked columns of high digits and of the weight, see `gather_kernel`, and their number."""
        columns, count = torch.empty_like(marks), marks[self.call.k :]
        programs = tiles.ceil_div(self.call.k, tiles.LIST_BLOCK)
        self._list(programs, (marks, columns, count), (self.call.k,))
        return *self._gathered(self._gather_found, hi, weight, columns, count, self.most), count

    def _gathered(
        self, gather: Launch, first: Tensor, second: Tensor, columns: Tensor, count: int | Tensor, most: int
    ) -> tuple[Tensor, Tensor]:
        rows, device = (len(first), len(second)), first.device
        outs = [torch.empty((m, most), dtype=torch.int8, device=device) for m in rows]
        programs = sum(tiles.ceil_div(m, tiles.GATHER_ROWS) for m in rows)
        widths = first.shape[1], second.shape[1]
        tensors, numbers = (first, second, *outs, columns), (*rows, self.call.k, *widths, most)
        if isinstance(count, Tensor):
            gather(programs, (*tensors, count), numbers)
        else:
            gather(programs, tensors, (count, *numbers))
        return outs[0], outs[1]


class _SomeRows:
    def __init__(self, call: Call) -> None:
        features = features_of(call.device)
        tile = tiles.some_rows_tile(call.m, call.n, call.p > 0, features.hopper)
        blocks = tiles.ceil_div(call.m, tile.m) * tiles.ceil_div(call.n, tile.n)
        self._split = tiles.split(blocks, call.k // tile.k, tile.fill * features.processors)
        self._programs = blocks * self._split
        self._rows = _Rows(call, tile, blocks if self._split > 1 else 0, False)
        self._partial = 2 * self._programs * tile.m * tile.n
        self._launch = Launch(some_rows_kernel, {
            **self._rows.constants, "SWAP": tile.swap, "SPLIT": self._split,
            "EVEN": call.k % tile.k == 0, "FULL": call.m % tile.m == 0,
        })  # fmt: skip

    def __call__(self, o: Operands) -> None:
        call, rows = self._rows.call, self._rows
        low = rows.low(o)
        lo, hi, scales, counters, _ = rows.digits(o)
        lo_some, hi_some = rows.second(lo, hi, o.columns)
        partial = counters
        if self._split > 1:
            partial = torch.empty(self._partial, dtype=torch.int32, device=call.device)
        tensors = lo, hi, scales, o.weight, o.absmax, o.bias, lo_some, hi_some, low, o.y, partial, counters
        self._launch(self._programs, tensors, (call.m, call.n, call.k, rows.padded_k, rows.padded_p))


class _ManyRows:
    def __init__(self, call: Call) -> None:
        tile = tiles.many_rows_tile(call.m, call.n, call.p > 0, features_of(call.device).hopper)
        self._programs = tiles.ceil_div(call.m, tile.m) * tiles.ceil_div(call.n, tile.n)
        self._rows = _Rows(call, tile, 0, call.rule != 0)
        even = call.k % tile.k == 0 and call.k % tiles.BLOCK_P == 0
        self._launch = Launch(many_rows_kernel, {**self._rows.constants, "EVEN": even})

    def __call__(self, o: Operands) -> None:
        call, rows = self._rows.call, self._rows
        low = rows.low(o)
        lo, hi, scales, _, marks = rows.digits(o)
        hi_found, weight_found, count = hi, o.weight, marks
        if call.rule:
            hi_found, weight_found, count = rows.found(o.weight, hi, marks)
        lo_some, hi_some = rows.second(lo, hi, o.columns)
        tensors = (
            lo, hi, scales, o.weight, o.absmax, o.bias, hi_found, weight_found, count, lo_some, hi_some,
            low, o.y,
        )  # fmt: skip
        self._launch(
            self._programs, tensors, (call.m, call.n, call.k, rows.padded_k, rows.most, rows.padded_p)
        )
