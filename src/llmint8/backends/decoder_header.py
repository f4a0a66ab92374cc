"""The structs of csrc/include/llmint8_decoder.h, field by field; a test compares the two."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import ClassVar

#: Values of the header's enumeration of activations.
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


class LinearStruct(ctypes.Structure):
    """`llmint8_decoder_linear`."""

    _fields_: ClassVar = [
        ("weight", c_void_p),
        ("absmax", c_void_p),
        ("bias", c_void_p),
        ("outlier_cols", c_void_p),
        ("weight_low", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("outliers", c_int64),
        ("threshold", c_float),
        ("bias_dtype", c_int32),
    ]


class LayerStruct(ctypes.Structure):
    """`llmint8_decoder_layer`."""

    _fields_: ClassVar = [
        *[(name, LinearStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")],
        ("input_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("post_norm", c_void_p),
        ("window", c_int64),
        ("activation", c_int64),
    ]


class DecoderStruct(ctypes.Structure):
    """`llmint8_decoder`."""

    _fields_: ClassVar = [
        ("layers", c_void_p),
        ("norm", c_void_p),
        ("head", c_void_p),
        ("layer_count", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("epsilon", c_float),
        ("scaling", c_float),
        ("dtype", c_int64),
    ]


class TokensStruct(ctypes.Structure):
    """`llmint8_decoder_tokens`."""

    _fields_: ClassVar = [
        ("hidden", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("mask", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("out", c_void_p),
        ("logits", c_void_p),
        ("batch", c_int64),
        ("tokens", c_int64),
        ("past", c_int64),
        ("capacity", c_int64),
        ("rotary_batch", c_int64),
        ("last", c_int64),
    ]
