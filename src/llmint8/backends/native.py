"""The CPU backend: kernels in C++, one set per instruction set, all returning the bits of the reference."""

from __future__ import annotations

import math
import os
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmint8 import ops, reference
from llmint8.backends.library import find_library, load_library, raise_last_error
from llmint8.backends.status import BackendStatus
from llmint8.errors import BackendError
from llmint8.ops.direct import LINEAR_KERNELS
from llmint8.ops.library import implement
from llmint8.ops.linear import check_arguments
from llmint8.reference.rowwise import check_rows

#: Forces an instruction set by name, or "reference" for no kernels at all.
ISA_VARIABLE = "LLMINT8_ISA"
REFERENCE = "reference"
#: The header's element types.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NO_LIBRARY = (
    "the kernels were not built, because no C++ compiler was found at installation; "
    "install one (Debian: apt install g++) and reinstall llmint8"
)


class Native:
    """The kernels of one instruction set.

    isa: its name; the best one that this CPU has when None.
    Raises BackendError if the library is absent, or the instruction set unknown or not had by this CPU.
    """

    def __init__(self, isa: str | None = None) -> None:
        path = find_library()
        if path is None:
            raise BackendError(NO_LIBRARY)
        self.path = path
        self._library = load_library(path)
        features = self._library.llmint8_cpu_features()
        count = self._library.llmint8_isa_count()
        #: Every instruction set that the library was built with, slowest first, and whether this CPU has it.
        self.isas = {
            self._library.llmint8_isa_name(i).decode(): bool(self._library.llmint8_isa_supported(i, features))
            for i in range(count)
        }
        names = list(self.isas)
        if isa is None:
            isa = names[self._library.llmint8_best_isa(features)]
        usable = [name for name, supported in self.isas.items() if supported]
        if isa not in names:
            raise BackendError(f"unknown instruction set {isa!r}; this build has {', '.join(names)}")
        if isa not in usable:
            raise BackendError(f"this CPU lacks {isa}; it can run {', '.join(usable)}")
        self.isa = isa
        self._index = names.index(isa)
        self._linear = self._library.llmint8_linear

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the header, whose first arguments are the instruction set and torch's threads.

        Raises BackendError with the library's message, or MemoryError, if it fails.
        """
        if getattr(self._library, function)(self._index, torch.get_num_threads(), *arguments):
            raise_last_error(self._library, function)

    def quantize_rows(self, x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """`ops.quantize_rows` on a CPU."""
        check_rows(x)
        x = x.contiguous()
        q = torch.empty(x.shape, dtype=torch.int16)
        row_scale = torch.empty(x.shape[:1], dtype=torch.float32)
        failed = self._library.llmint8_quantize_rows(
            self._index, torch.get_num_threads(), DTYPES[x.dtype],
            *x.shape, x.data_ptr(), threshold, q.data_ptr(), row_scale.data_ptr(),
        )  # fmt: skip
        if failed:
            raise_last_error(self._library, "llmint8_quantize_rows")
        return q, row_scale

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        threshold: float,
        outlier_cols: Tensor | None = None,
        weight_low: Tensor | None = None,
    ) -> Tensor:
        """`ops.linear` on a CPU."""
        check_arguments(x, weight, absmax, bias, outlier_cols, weight_low)
        n, k = weight.shape
        leading = x.shape[:-1]
        y = x.new_empty(*leading, n)  # a tuple takes torch half a microsecond longer
        x, weight, absmax = x.contiguous(), weight.contiguous(), absmax.contiguous()
        dtype = bias_dtype = DTYPES[x.dtype]
        bias_address = None
        if bias is not None:
            bias = bias.contiguous()
            bias_dtype, bias_address = DTYPES[bias.dtype], bias.data_ptr()
        columns, columns_address, low_address = 0, None, None
        if outlier_cols is not None and weight_low is not None:
            outlier_cols, weight_low = outlier_cols.contiguous(), weight_low.contiguous()
            columns = outlier_cols.shape[0]
            columns_address, low_address = outlier_cols.data_ptr(), weight_low.data_ptr()
        failed = self._linear(
            self._index, torch.get_num_threads(), dtype, bias_dtype, math.prod(leading), k, n,
            x.data_ptr(), weight.data_ptr(), absmax.data_ptr(), bias_address, threshold,
            columns, columns_address, low_address, y.data_ptr(),
        )  # fmt: skip
        if failed:
            raise_last_error(self._library, "llmint8_linear")
        return y


@cache
def engine() -> Native | None:
    """What runs on the CPU, chosen at the first call and kept; None is the reference.

    Raises BackendError if LLMINT8_ISA names what cannot run. Without kernels, and nothing forced, warns once.
    """
    forced = os.environ.get(ISA_VARIABLE)
    if forced == REFERENCE:
        return None
    if forced:
        try:
            return Native(forced)
        except BackendError as error:
            raise BackendError(f"{ISA_VARIABLE}={forced}: {error}") from error
    try:
        return Native()
    except BackendError as error:
        warnings.warn(f"llmint8 runs its slow reference: {error}", stacklevel=2)
        return None


def status() -> list[BackendStatus]:
    """The reference and every instruction set, with the reason why one is not used.

    Raises BackendError if LLMINT8_ISA names what cannot run.
    """
    try:
        native: Native | None = Native()
        absent = ""
    except BackendError as error:
        native, absent = None, str(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        active = engine()
    rows = [BackendStatus(REFERENCE, True, active is None, "plain torch: exact, and slow")]
    if native is None:
        return [*rows, BackendStatus("native", False, False, absent)]
    for isa, supported in native.isas.items():
        used = active is not None and active.isa == isa
        detail = f"kernels from {native.path.name}" if supported else "this CPU lacks the instructions"
        rows.append(BackendStatus(f"native:{isa}", supported, used, detail))
    return rows


def _quantize_rows(x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    native = engine()
    return reference.quantize_rows(x, threshold) if native is None else native.quantize_rows(x, threshold)


def _linear(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    threshold: float,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    native = engine()
    run = ops.reference_linear if native is None else native.linear
    return run(x, weight, absmax, bias, threshold, outlier_cols, weight_low)


def register() -> None:
    """Make these the operations' CPU implementations; the library is loaded at the first call."""
    implement(ops.quantize_rows, _quantize_rows, "CPU")
    implement(ops.linear, _linear, "CPU")
    LINEAR_KERNELS["cpu"] = _linear
