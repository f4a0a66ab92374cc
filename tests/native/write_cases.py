"""Writes a file of inputs with the reference's bits, for agreement.cpp: `write_cases.py FILE`.

Little-endian: the number of cases; for each the codes of dtype and bias dtype (-1: no bias), M, K, N, P as
int32, the threshold as float32, x, weight, absmax, bias, outlier_cols, weight_low, and what is expected: q,
row_scale, y.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from agreement.cases import DTYPES, Case, random_case
from llmint8 import ops, reference


def _bytes(tensor: Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes()


def encode(case: Case) -> bytes:
    """One case and what the reference returns for it."""
    (m, k), n = case.x.shape, len(case.absmax)
    bias_dtype = -1 if case.bias is None else DTYPES.index(case.bias.dtype)
    p = 0 if case.outlier_cols is None else len(case.outlier_cols)
    header = struct.pack("<6if", DTYPES.index(case.x.dtype), bias_dtype, m, k, n, p, case.threshold)
    q, row_scale = reference.quantize_rows(case.x, case.threshold)
    y = ops.reference_linear(*case.arguments)
    layer = case.weight, case.absmax, case.bias, case.outlier_cols, case.weight_low
    return header + b"".join(map(_bytes, (case.x, *layer, q, row_scale, y)))


def write_cases(path: Path, count: int) -> None:
    """The first `count` random cases of the agreement suite."""
    cases = [encode(random_case(seed)) for seed in range(count)]
    path.write_bytes(struct.pack("<i", count) + b"".join(cases))


if __name__ == "__main__":
    write_cases(Path(sys.argv[1]), 200)
