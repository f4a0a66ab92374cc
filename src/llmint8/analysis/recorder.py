"""`OutlierRecorder`: what goes into the linear layers of a model while it runs, as running statistics.

Inputs are never kept: each call is folded into sums and maxima per input dimension and per position, in
memory of the order of one row a layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmint8.errors import InputError

#: Rows that exist as float32 magnitudes at a time: 16 MiB for 8,192 dimensions.
_BLOCK = 512
#: Outputs of norms that are kept for comparison: parallel branches make two before the first is read.
_RECENT_NORMS = 4


class InputStatistics:
    """The input of one layer, over all calls so far.

    positions: rows seen. affected: rows with an outlier, an element with `|x| >= threshold`.
    magnitude: float32 `[K]`, the largest magnitude of each input dimension. count: int64 `[K]`, the rows in
    which it is an outlier.
    position_magnitude: float32 `[L]`, position_count: int64 `[L]`: the largest magnitude and the outlier
    elements at each position, which is an index into the second to last dimension of the input; L is that of
    the longest call.
    normalized: whether all that came in was the output of a norm, as it is for layers that read the hidden
    state of a transformer.
    A NaN in an input remains a NaN in the magnitudes.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.positions = 0
        self.affected = 0
        self.normalized = True
        self.magnitude = torch.zeros(features, dtype=torch.float32, device=device)
        self.count = torch.zeros(features, dtype=torch.int64, device=device)
        self.position_magnitude = torch.zeros(0, dtype=torch.float32, device=device)
        self.position_count = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def features(self) -> int:
        """K."""
        return len(self.magnitude)

    def add(self, x: Tensor, threshold: float) -> None:
        """Count one input, float `[..., K]`."""
        sequences = x.reshape(-1, x.shape[-2] if x.dim() > 1 else 1, x.shape[-1])
        self._grow(sequences.shape[1])
        for sequence in sequences:
            for start in range(0, len(sequence), _BLOCK):
                self._add_rows(sequence[start : start + _BLOCK], start, threshold)

    def _add_rows(self, rows: Tensor, start: int, threshold: float) -> None:
        # As the layers compare: in float32, since 16 bits would round a threshold such as 6.3.
        magnitude = rows.abs().to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        outliers = magnitude >= torch.tensor(threshold, dtype=torch.float32, device=rows.device)
        here = slice(start, start + len(rows))
        by_row = outliers.sum(1)
        self.positions += len(rows)
        self.affected += int((by_row > 0).sum())
        self.count += outliers.sum(0)
        self.position_count[here] += by_row
        self.magnitude = torch.maximum(self.magnitude, magnitude.amax(0).float())
        self.position_magnitude[here] = torch.maximum(
            self.position_magnitude[here], magnitude.amax(1).float()
        )

    def _grow(self, length: int) -> None:
        missing = length - len(self.position_count)
        if missing > 0:
            self.position_count = torch.nn.functional.pad(self.position_count, (0, missing))
            self.position_magnitude = torch.nn.functional.pad(self.position_magnitude, (0, missing))


class OutlierRecorder:
    """A context manager: inside it, every call of the named layers is counted; the model computes the same.

    model: any model. layers: names of its linear layers, as in `plan_conversion(model, None).convert`; any
        module whose first argument is float `[..., K]` will do.
    threshold: the magnitude from which an element is an outlier.

    Its hooks are gone when the context ends, however it ends; entered again, it goes on counting. Rows that
    only pad a batch are counted like others. Raises InputError for a layer that the model lacks, and for a
    threshold that is not above 0.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], threshold: float = 6.0) -> None:
        if not threshold > 0:
            raise InputError(f"the threshold of an outlier must be above 0, got {threshold}")
        modules = dict(model.named_modules())
        self.threshold = threshold
        self._layers: dict[str, nn.Module] = {}
        for name in layers:
            if name not in modules:
                raise InputError(f"the model has no layer {name!r}; give names of model.named_modules()")
            self._layers[name] = modules[name]
        self._norms = [m for m in modules.values() if "norm" in type(m).__name__.lower()]
        self._statistics: dict[str, InputStatistics] = {}
        self._recent: deque[Tensor] = deque(maxlen=_RECENT_NORMS)
        self._handles: list[RemovableHandle] = []

    @property
    def statistics(self) -> Mapping[str, InputStatistics]:
        """By the name of the layer, in the model's order; layers that were never called are absent."""
        return {name: self._statistics[name] for name in self._layers if name in self._statistics}

    @property
    def never_called(self) -> tuple[str, ...]:
        """Layers that saw no input: experts that no token was sent to, branches that did not run."""
        return tuple(name for name in self._layers if name not in self._statistics)

    def __enter__(self) -> OutlierRecorder:
        try:
            for norm in self._norms:
                self._handles.append(norm.register_forward_hook(self._keep_normed))
            for name, module in self._layers.items():
                hook = _hook_for(self, name)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._recent.clear()

    def _keep_normed(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._recent.append(output)

    def _count(self, name: str, x: Tensor) -> None:
        if x.numel() == 0:
            return
        # The statistics must outlive an inference mode, whose tensors cannot be changed outside of it.
        with torch.inference_mode(False), torch.no_grad():
            if name not in self._statistics:
                self._statistics[name] = InputStatistics(x.shape[-1], x.device)
            statistics = self._statistics[name]
            statistics.normalized &= self._comes_from_norm(x)
            statistics.add(x.detach(), self.threshold)

    def _comes_from_norm(self, x: Tensor) -> bool:
        """By its memory, so that a reshape hides nothing; no address recurs while the outputs are kept."""
        return any(
            normed.shape[-1] == x.shape[-1]
            and normed.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            for normed in self._recent
        )


def _hook_for(recorder: OutlierRecorder, name: str) -> Any:
    def hook(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (*arguments, *named.values())
        x = next((value for value in given if isinstance(value, Tensor)), None)
        if x is not None:
            recorder._count(name, x)

    return hook
