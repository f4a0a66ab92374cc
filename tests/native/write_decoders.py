"""Writes a file of decoders and tokens with the reference's bits, for decoders.cpp: `write_decoders.py FILE`.

Little-endian int64 (sizes, codes, -1 for the dtype of what is absent), float32, and the bytes of tensors, in
the order in which decoders.cpp reads them.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from agreement.cases import DTYPES
from agreement.decoders import random_case
from llmint8.backends.decoder_header import ACTIVATIONS
from llmint8.reference.decoder import DecoderLayer, Linear


def _bytes(*tensors: Tensor | None) -> bytes:
    return b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t is not None)


def _integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _linear(linear: Linear) -> bytes:
    bias_dtype = -1 if linear.bias is None else DTYPES.index(linear.bias.dtype)
    outliers = 0 if linear.outlier_cols is None else len(linear.outlier_cols)
    header = _integers(*linear.weight.shape, int(linear.absmax is not None), outliers, bias_dtype)
    tensors = linear.weight, linear.absmax, linear.bias, linear.outlier_cols, linear.weight_low
    return header + struct.pack("<f", linear.threshold) + _bytes(*tensors)


def _layer(layer: DecoderLayer) -> bytes:
    header = _integers(layer.window or 0, ACTIVATIONS[layer.activation], int(layer.q_norm is not None))
    norms = _bytes(layer.input_norm, layer.post_norm, layer.q_norm, layer.k_norm)
    linears = (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
    return header + norms + b"".join(map(_linear, linears))


def encode(seed: int) -> bytes:
    """One decoder, tokens, and what the reference makes of them."""
    decoder, tokens, (out, logits, keys, values) = random_case(seed)
    last = 0 if logits is None else logits.shape[1]
    sizes = _integers(
        DTYPES.index(tokens.hidden.dtype), len(decoder.layers), len(decoder.norm), decoder.heads,
        decoder.kv_heads, decoder.head_dim, *tokens.hidden.shape[:2], tokens.past, tokens.keys[0].shape[2],
        tokens.cos.shape[0], last, int(tokens.mask is not None), int(decoder.head is not None),
    )  # fmt: skip
    head = b"" if decoder.head is None else _linear(decoder.head)
    model = _bytes(decoder.norm) + b"".join(map(_layer, decoder.layers)) + head
    given = _bytes(tokens.hidden, tokens.cos, tokens.sin, tokens.mask, *tokens.keys, *tokens.values)
    scales = struct.pack("<2f", decoder.epsilon, decoder.scaling)
    return sizes + scales + model + given + _bytes(*keys, *values, out, logits)


def write_decoders(path: Path, count: int) -> None:
    """The first `count` random decoders of the agreement suite."""
    path.write_bytes(_integers(count) + b"".join(encode(seed) for seed in range(count)))


if __name__ == "__main__":
    write_decoders(Path(sys.argv[1]), 150)
