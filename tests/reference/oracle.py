"""The contract once more, row by row in numpy and Python integers, written from docs/numerics.md alone.

It shares no line with the reference: each float32 step is one numpy operation, each sum a Python integer.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

f32 = np.float32


def quantized_row(row: np.ndarray, threshold: float) -> tuple[list[int], np.float32]:
    """q and row_scale of one row of float32 values; threshold negative is "auto"."""
    count = len(row)
    magnitude = [abs(f32(v)) for v in row]
    if not all(math.isfinite(m) for m in magnitude):
        return [0] * count, f32("nan")
    amax = max(magnitude, default=f32(0))
    if float(amax) < 2.0**-100:
        return [0] * count, f32(0)
    if threshold == 0:
        outlier = [False] * count
    elif threshold > 0:
        outlier = [m >= f32(threshold) for m in magnitude]
    else:
        factor = f32(32767) / amax
        p = [int(np.rint(m * factor)) for m in magnitude]
        outlier = [value * count > 8 * sum(p) for value in p]
    normal = max((m for m, out in zip(magnitude, outlier, strict=True) if not out), default=f32(0))
    inverse = f32(32512) / amax
    if float(normal) >= 2.0**-100:
        inverse = min(f32(127) / normal, inverse)
    return [int(np.rint(f32(v) * inverse)) for v in row], f32(1) / inverse


def digits(q: int) -> tuple[int, int]:
    """lo, hi with q = lo + 256 hi and -128 <= lo <= 127."""
    lo = (q + 128) % 256 - 128
    return lo, (q - lo) // 256


def linear(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    threshold: float,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """The whole layer, `[M, N]` in the dtype of x."""
    weight = [[int(v) for v in row] for row in codes.tolist()]
    columns = [] if outlier_cols is None else outlier_cols.tolist()
    low = [] if weight_low is None else weight_low.tolist()
    scales = [f32(a) / f32(127) for a in absmax.numpy()]
    rows = []
    with np.errstate(over="ignore", invalid="ignore"):
        for row in x.float().numpy():
            q, row_scale = quantized_row(row, threshold)
            lo, hi = zip(*map(digits, q), strict=True) if q else ((), ())
            out = []
            for n, code in enumerate(weight):
                a = sum(d * c for d, c in zip(lo, code, strict=True))
                b = sum(d * c for d, c in zip(hi, code, strict=True))
                t = f32(b) * f32(256) + f32(a)
                if columns:
                    c = sum(lo[k] * low[n][i] for i, k in enumerate(columns))
                    d = sum(hi[k] * low[n][i] for i, k in enumerate(columns))
                    t = t + (f32(d) + f32(c) / f32(256))
                y = t * (row_scale * scales[n])
                if bias is not None:
                    y = y + f32(bias[n].float().item())
                out.append(y)
            rows.append(out)
    values = np.array(rows, dtype=f32).reshape(len(x), len(weight))
    y = torch.from_numpy(values).to(x.dtype)
    return y.masked_fill(y.isnan(), math.nan)
