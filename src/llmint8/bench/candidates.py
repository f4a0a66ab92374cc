"""Every way to compute one linear layer on this machine: weights made once, inputs for each M."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmint8.bench import peers
from llmint8.bench.timing import CACHES, Candidate, copies, one_line, rotate
from llmint8.config import Threshold
from llmint8.nn import Int8Linear
from llmint8.numerics import CODE_MAX, DEFAULT_THRESHOLD, OUTLIER_COLUMN_SHARE

#: The candidate that all others are compared with, and the same without outliers.
OURS = "llmint8 6.0"
PLAIN = "llmint8 0"
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT_MM = "torch._int_mm"
#: With a second weight digit on as many columns as may have one, those with outliers among them.
SECOND_DIGIT = "llmint8 auto, int16"
_THRESHOLDS: dict[str, Threshold] = {OURS: DEFAULT_THRESHOLD, "llmint8 auto": "auto", PLAIN: 0.0}
#: At the default threshold, with that share of the elements of each row outliers, in columns of its own.
_OUTLIERS = {"llmint8 6.0, 1 %": 0.01, "llmint8 6.0, 5 %": 0.05, "llmint8 6.0, 100 %": 1.0}
_OUTLIER_COLUMNS = 6


class Layer:
    """The weights of a layer, K inputs and N outputs, in every form; each form outgrows the caches.

    k, n: both at least 1. device: where the layer runs. beyond: bytes that outgrow its caches.
    """

    def __init__(self, k: int, n: int, device: str = "cpu", beyond: int = CACHES) -> None:
        self.k, self.n, self._device, self._beyond = k, n, device, beyond
        self._step = max(1, k // _OUTLIER_COLUMNS)  # between columns of outliers
        self.failures: dict[str, str] = {}
        self._generator = torch.Generator().manual_seed(0)
        weight = (torch.randn((n, k), generator=self._generator) / k**0.5).to(device)
        self._floats = {
            name: rotate(_clones(weight.to(dtype), copies(k * n * dtype.itemsize, beyond)))
            for name, dtype in FLOATS.items()
        }
        self._ours = self._modules(Int8Linear.from_weight(weight))
        self._second_digit = self._modules(Int8Linear.from_weight(weight, outlier_cols=self._columns()))
        self._peers: dict[str, Callable[[], nn.Module]] = {}
        for name in peers.installed():
            try:
                with torch.inference_mode():
                    self._peers[name] = rotate(peers.build(name, weight, copies(k * n, beyond)))
            except Exception as error:  # another library's: it raises what it likes
                self.failures[name] = one_line(error)

    def candidates(self, m: int) -> dict[str, Candidate]:
        """By name, for M rows. Inputs are bfloat16, and of the layer's own type for torch's floats."""
        x = self._columns_of_outliers(m)
        half = x.bfloat16()
        found: dict[str, Candidate] = {}
        for name, threshold in _THRESHOLDS.items():
            found[name] = Candidate(partial(self._our_call, self._ours, half, threshold))
        found[SECOND_DIGIT] = Candidate(partial(self._our_call, self._second_digit, half, "auto"))
        for name, share in _OUTLIERS.items():
            given = self._scattered_outliers(m, share).bfloat16()
            found[name] = Candidate(partial(self._our_call, self._ours, given, DEFAULT_THRESHOLD))
        for name, dtype in FLOATS.items():
            found[name] = Candidate(partial(self._float_call, x.to(dtype), self._floats[name]))
        codes = torch.randint(-CODE_MAX, CODE_MAX + 1, (m, self.k), dtype=torch.int8).to(self._device)
        found[INT_MM] = Candidate(partial(self._int_mm_call, codes), may_fail=True)
        for name, layers in self._peers.items():
            found[name] = Candidate(partial(self._peer_call, half, layers), may_fail=True)
        return found

    def _modules(self, first: Int8Linear) -> Callable[[], Int8Linear]:
        ours = [first]
        while len(ours) < copies(self.k * self.n, self._beyond):
            # A deep copy would lie where torch puts it, not where a layer keeps its weight.
            ours.append(Int8Linear(self.k, self.n, bias=False, device=self._device))
            ours[-1].load_state_dict(first.state_dict())
        with torch.inference_mode():
            for module in ours:  # what a backend may prepare for a weight is no part of a call
                module(torch.zeros(1, self.k, dtype=torch.bfloat16, device=self._device))
        return rotate(ours)

    def _columns(self) -> Tensor:
        """The columns of outliers, then others from the first on, as many as may have a second digit."""
        count = max(1, int(OUTLIER_COLUMN_SHARE * self.k))
        columns = dict.fromkeys([*range(self.k)[:: self._step][:_OUTLIER_COLUMNS], *range(self.k)])
        return torch.tensor(sorted([*columns][:count]), dtype=torch.int32)

    def _our_call(
        self, modules: Callable[[], Int8Linear], x: Tensor, threshold: Threshold
    ) -> Callable[[], object]:
        module = modules()
        module.threshold = threshold
        return partial(module, x)

    def _float_call(self, x: Tensor, weights: Callable[[], Tensor]) -> Callable[[], object]:
        return partial(functional.linear, x, weights())

    def _int_mm_call(self, codes: Tensor) -> Callable[[], object]:
        return partial(torch._int_mm, codes, self._ours().weight.t())

    def _peer_call(self, x: Tensor, layers: Callable[[], nn.Module]) -> Callable[[], object]:
        return partial(layers(), x)

    def _columns_of_outliers(self, m: int) -> Tensor:
        """Normal values, but for six columns that are twenty times as large: the paper's picture."""
        x = torch.randn((m, self.k), generator=self._generator)
        x[:, :: self._step][:, :_OUTLIER_COLUMNS] *= 20
        return x.to(self._device)

    def _scattered_outliers(self, m: int, share: float) -> Tensor:
        """Each row has its own outliers, as real models do: at least one, all of magnitude 10 or more."""
        x = torch.randn((m, self.k), generator=self._generator).clamp(-4, 4)
        count = max(1, round(share * self.k))
        columns = torch.rand((m, self.k), generator=self._generator).topk(count, dim=1).indices
        values = x.gather(1, columns)
        return x.scatter(1, columns, torch.where(values < 0, values - 10, values + 10)).to(self._device)


def _clones(tensor: Tensor, count: int) -> list[Tensor]:
    return [tensor.clone() for _ in range(count)]
