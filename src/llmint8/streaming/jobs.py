"""What is done to each tensor: copied, or quantised; block by block wherever rows are stored one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmint8 import reference
from llmint8.streaming.formats import Llmint8
from llmint8.streaming.shard import Output
from llmint8.streaming.source import Source

#: Takes a key, a block of elements and the position of the first.
Write = Callable[[str, Tensor, int], None]


class Job(Protocol):
    """Some tensors of the converted model, which belong into one file, and the work that makes them."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The tensors that are written."""

    def run(self, source: Source, write: Write) -> None:
        """Read, convert and write them. Raises QuantizationError for a non-finite weight."""


@dataclass(frozen=True)
class Copy:
    """A tensor that stays as it is, cast to the dtype that loading would give it."""

    key: str
    output: Output

    @property
    def outputs(self) -> tuple[Output, ...]:
        """One tensor."""
        return (self.output,)

    def run(self, source: Source, write: Write) -> None:
        """Block by block."""
        for first, block in source.blocks(self.key):
            write(self.output.key, block.to(self.output.dtype), first)


@dataclass(frozen=True)
class Quantize:
    """A float weight that becomes codes and scales.

    key: its name in the source. layer: what the layer is called in the converted checkpoint. dtype: what the
    weight is cast to first, as loading casts it. shape: `(N, K)`. transposed: it is stored as `[K, N]`.
    suffixes: of the tensors that are written, where the layer is one of several that loading stacks.
    columns: int32 `[P]`, those with a second weight digit; None for none.
    """

    key: str
    layer: str
    dtype: torch.dtype
    shape: tuple[int, int]
    transposed: bool
    format: Llmint8
    suffixes: tuple[str, ...] | None = None
    columns: Tensor | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Codes, scales and the second digit."""
        return (*self._first_digit, *self._second_digit)

    @property
    def _first_digit(self) -> tuple[Output, ...]:
        outputs = self.format.outputs(self.layer, *self.shape)
        return tuple(o for o in outputs if o.key.endswith(self.suffixes or self.format.suffixes))

    @property
    def _second_digit(self) -> tuple[Output, ...]:
        if self.columns is None:
            return ()
        columns, low = (self.layer + suffix for suffix in self.format.second_digit)
        count = len(self.columns)
        return Output(columns, torch.int32, (count,)), Output(low, torch.int8, (self.shape[0], count))

    def run(self, source: Source, write: Write) -> None:
        """Rows are independent, so a block of them is quantised as the whole is; `[K, N]` is read whole."""
        rows, features = self.shape
        codes_key, *scale_keys = (output.key for output in self._first_digit)
        if self.transposed:
            weight = source.read(self.key).to(self.dtype).view(features, rows).T
            codes, absmax = reference.quantize_weight(weight, self.key)
            write(codes_key, codes, 0)
            self._write_low(write, weight, codes, absmax, 0)
        else:
            parts = []
            for first, block in source.blocks(self.key, multiple=max(features, 1)):
                weight = block.to(self.dtype).view(-1, features)
                codes, scale = reference.quantize_weight(weight, self.key)
                write(codes_key, codes, first)
                self._write_low(write, weight, codes, scale, first // max(features, 1))
                parts.append(scale)
            absmax = torch.cat(parts) if parts else torch.zeros(rows)
        scales = self.format.scales(self.layer, absmax)
        for key in scale_keys:
            write(key, scales[key], 0)
        if self.columns is not None:
            write(self._second_digit[0].key, self.columns, 0)

    def _write_low(self, write: Write, weight: Tensor, codes: Tensor, absmax: Tensor, first_row: int) -> None:
        if self.columns is not None:
            low = reference.quantize_low_digit(weight, codes, absmax, self.columns)
            write(self._second_digit[1].key, low, first_row * len(self.columns))


@dataclass(frozen=True)
class QuantizeExperts:
    """The experts of a mixture, stored as one tensor of three dimensions; expert by expert.

    key: its name in the source and in the result. scales: that of its scales in the result. dtype: what it is
    cast to first. shape: as it is stored, `(E, N, K)`, or `(E, K, N)` if transposed.
    """

    key: str
    scales: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    transposed: bool

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Codes `[E, N, K]` and scales `[E, N]`."""
        experts, *sides = self.shape
        rows, features = reversed(sides) if self.transposed else sides
        return (
            Output(self.key, torch.int8, (experts, rows, features)),
            Output(self.scales, torch.float32, (experts, rows)),
        )

    def run(self, source: Source, write: Write) -> None:
        """One expert at a time."""
        experts, first, second = self.shape
        size = first * second
        codes_key, scales_key = (output.key for output in self.outputs)
        for expert in range(experts):
            stored = source.read(self.key, expert * size, size).to(self.dtype).view(first, second)
            weight = stored.T if self.transposed else stored
            codes, absmax = reference.quantize_weight(weight, f"{self.key}[{expert}]")
            write(codes_key, codes, expert * size)
            write(scales_key, absmax, expert * absmax.numel())
