"""Which elements of a row are outliers: the paper's magnitude rule and the scale-free one.

An element belongs to the outliers of its own row alone, so a row's result never depends on its batch. (The
paper, arXiv 2208.07339 section 3.2, pools columns over the batch.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmint8.numerics import AUTO_FACTOR, MAGNITUDE_MAX, OUTLIER_COLUMN_SHARE


def outlier_mask(magnitude: Tensor, amax: Tensor, threshold: float) -> Tensor:
    """Outlier elements of each row.

    magnitude: float32 `[M, K]`, the absolute values, finite.
    amax: float32 `[M, 1]`, the largest magnitude of each row, at least 2^-100.
    threshold: 0 for none, t > 0 for `|x| >= t` (compared in float32), negative for the automatic rule.

    Returns bool `[M, K]`.
    """
    if threshold == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    if threshold > 0:
        bound = torch.tensor(threshold, dtype=torch.float32, device=magnitude.device)
        return (magnitude >= bound) & (bound > 0)
    # In integers, so that every backend decides alike: p counts 1/32767ths of the row's largest magnitude.
    p = (magnitude * (torch.full_like(amax, MAGNITUDE_MAX) / amax)).round().to(torch.int64)
    return p * magnitude.shape[1] > AUTO_FACTOR * p.sum(dim=1, keepdim=True)


def outlier_columns(counts: Tensor) -> Tensor:
    """The columns that get a second weight digit: those that were outliers most often, at most 2 %.

    counts: int64 `[K]`, the rows in which each column was an outlier. Of equally frequent columns the first
    count; one that never was an outlier does not.

    Returns int32 `[P]`, ascending.
    """
    most = int(OUTLIER_COLUMN_SHARE * len(counts))
    ranked = torch.argsort(counts, descending=True, stable=True)[:most]
    return ranked[counts[ranked] > 0].sort().values.int()
