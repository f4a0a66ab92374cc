"""Row-wise quantisation of weights and activations (docs/numerics.md, "Weight" and "Activations").

Divisions are written tensor by tensor on purpose: torch turns `127 / t` with a Python number into a
reciprocal and a product, which is one unit in the last place off.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmint8 import memory
from llmint8.errors import InputError, QuantizationError
from llmint8.numerics import CODE_MAX, DIGIT_BASE, MAX_FEATURES, OUTLIER_MAX, TINY
from llmint8.reference.outliers import outlier_mask

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
#: Elements widened to float32 at a time while a weight is quantised: 16 MiB.
_CHUNK = 1 << 22


def _divide(numerator: int, denominator: Tensor) -> Tensor:
    return torch.full_like(denominator, numerator) / denominator


def weight_absmax(weight: Tensor, name: str = "weight") -> Tensor:
    """The largest magnitude of each output feature, and the checks of a weight that is to be quantised.

    weight: float `[N, K]`, row-major or not. name: what an error calls the tensor.

    Returns float32 `[N]`; 0 for a row whose largest magnitude is below 2^-100.
    Raises QuantizationError for a NaN, an infinity (also one that only float32 has: 1e300), a wrong shape or
    dtype, K above 131,072, or a weight without data.
    """
    if weight.dim() != 2 or weight.dtype not in (*FLOATS, torch.float64):
        given = f"{weight.dtype} {list(weight.shape)}"
        raise QuantizationError(f"{name}: expected a two-dimensional floating-point weight, got {given}")
    rows, features = weight.shape
    if features > MAX_FEATURES:
        raise QuantizationError(
            f"{name}: {features} input features exceed {MAX_FEATURES}, beyond which int32 sums could "
            "overflow; add the module to skip_modules"
        )
    if weight.is_meta:
        raise QuantizationError(f"{name} has no data (meta device): load the weights first")
    absmax = torch.zeros(rows, dtype=torch.float32, device=weight.device)
    for block in _row_blocks(weight):
        largest = weight[block].float().abs().amax(dim=1)
        if not torch.isfinite(largest).all():
            raise QuantizationError(
                f"{name} holds a NaN or an infinity, which no scale can represent; repair the weight, "
                "or add the module to skip_modules"
            )
        absmax[block] = torch.where(largest < TINY, torch.zeros_like(largest), largest)
    return absmax


def quantize_weight(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Vector-wise absmax quantisation, one scale per output feature (arXiv 2208.07339, section 3.1).

    weight: float `[N, K]`, row-major or not; never modified. name: what an error calls the tensor.

    Returns the codes int8 `[N, K]`, contiguous, within ±127, and the absmax float32 `[N]`
    (weight ≈ codes · absmax / 127); both 0 for a row whose largest magnitude is below 2^-100.
    Raises QuantizationError, see `weight_absmax`.
    """
    absmax = weight_absmax(weight, name)
    return weight_codes(weight, absmax), absmax


def weight_codes(weight: Tensor, absmax: Tensor) -> Tensor:
    """The codes of a weight for given scales, int8 `[N, K]`, contiguous, within ±127.

    weight: float `[N, K]`, finite; some columns of a wider one will do. absmax: float32 `[N]`, at least the
    largest magnitude of each row; 0 gives codes 0.
    """
    factor = _divide(CODE_MAX, absmax).masked_fill(absmax == 0, 0)[:, None]
    codes = memory.zeros(weight.shape, device=weight.device)
    for block in _row_blocks(weight):
        scaled = weight[block].float() * factor[block]
        codes[block] = scaled.round().clamp(-CODE_MAX, CODE_MAX).to(torch.int8)
    return codes


def _row_blocks(weight: Tensor) -> Iterator[slice]:
    """Slices of rows that bound how much of a weight is widened to float32 at a time."""
    rows, features = weight.shape
    step = max(1, _CHUNK // max(features, 1))
    return (slice(start, start + step) for start in range(0, rows if features else 0, step))


def weight_scale(absmax: Tensor) -> Tensor:
    """The scale of each output feature, float32 `[N]`: absmax / 127 in one correctly rounded division."""
    return absmax / torch.full_like(absmax, CODE_MAX)


def dequantize_weight(
    codes: Tensor,
    absmax: Tensor,
    dtype: torch.dtype = torch.float32,
    outlier_cols: Tensor | None = None,
    weight_low: Tensor | None = None,
) -> Tensor:
    """`(codes + low / 256) · scale` computed in float32, then rounded to `dtype`: `[N, K]`.

    codes: int8 `[N, K]`; absmax: float32 `[N]`.
    outlier_cols, weight_low: int32 `[P]` and int8 `[N, P]`, the columns that have a low digit; None for none.
    """
    values = codes.to(torch.float32)
    if outlier_cols is not None and weight_low is not None:
        values[:, outlier_cols.long()] += weight_low.to(torch.float32) / DIGIT_BASE
    return (values * weight_scale(absmax)[:, None]).to(dtype)


def quantize_low_digit(weight: Tensor, codes: Tensor, absmax: Tensor, outlier_cols: Tensor) -> Tensor:
    """The second digit of the weights of a few columns: `W ≈ scale · (code + low / 256)` there.

    weight: float `[N, K]`. codes, absmax: of `quantize_weight`. outlier_cols: int32 `[P]`, ascending.

    Returns low int8 `[N, P]` within [-128, 127]; zero rows give 0.
    """
    columns = outlier_cols.long()
    scale = weight_scale(absmax)[:, None]
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    rest = weight[:, columns].float() / safe - codes[:, columns].float()
    low = (rest * DIGIT_BASE).round().clamp(-CODE_MAX - 1, CODE_MAX)
    return torch.where(scale > 0, low, torch.zeros_like(low)).to(torch.int8)


def check_rows(x: Tensor) -> None:
    """Raise InputError unless x can be quantised row by row."""
    if x.dtype not in FLOATS or x.dim() != 2:
        raise InputError(
            "activations must be float32, float16 or bfloat16 of two dimensions, "
            f"got {x.dtype} {list(x.shape)}"
        )


def quantize_rows(x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Quantise activations, one scale per row (docs/numerics.md, "Activations").

    x: float16, bfloat16 or float32 `[M, K]`; never modified.
    threshold: 0 for no outliers, t > 0 for the paper's rule, negative for the automatic rule.

    Returns q int16 `[M, K]` (within ±127 for normal elements, ±32512 for outliers: `x ≈ q · row_scale`)
    and row_scale float32 `[M]`. A row that is zero (largest magnitude below 2^-100) has row_scale 0; a row
    with a NaN or an infinity has row_scale NaN; both have q = 0.
    Raises InputError for another dtype or shape.
    """
    check_rows(x)
    values = x.to(torch.float32)
    if values.shape[1] == 0:
        return values.to(torch.int16), values.new_zeros(values.shape[0])
    magnitude = values.abs()
    amax = magnitude.amax(dim=1, keepdim=True)
    finite = torch.isfinite(amax)
    usable = finite & (amax >= TINY)
    magnitude = torch.where(usable, magnitude, torch.ones_like(magnitude))
    amax = torch.where(usable, amax, torch.ones_like(amax))
    normal = magnitude.masked_fill(outlier_mask(magnitude, amax, threshold), 0)
    largest_normal = normal.amax(dim=1, keepdim=True)
    by_outlier = _divide(OUTLIER_MAX, amax)
    by_normal = _divide(CODE_MAX, torch.where(largest_normal < TINY, amax, largest_normal))
    inverse = torch.where(largest_normal < TINY, by_outlier, torch.minimum(by_normal, by_outlier))
    q = (torch.where(usable, values, torch.zeros_like(values)) * inverse).round().to(torch.int16)
    row_scale = torch.where(usable, _divide(1, inverse), torch.zeros_like(inverse))
    return q, row_scale.masked_fill(~finite, float("nan"))[:, 0]


def split_digits(q: Tensor) -> tuple[Tensor, Tensor]:
    """Two int8 digits of quantised activations: `q = lo + 256 · hi`, lo within [-128, 127]."""
    wide = q.to(torch.int32)
    lo = (wide + DIGIT_BASE // 2).remainder(DIGIT_BASE) - DIGIT_BASE // 2
    hi = (wide - lo).div(DIGIT_BASE, rounding_mode="trunc")
    return lo.to(torch.int8), hi.to(torch.int8)
