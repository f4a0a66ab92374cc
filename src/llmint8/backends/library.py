"""The compiled library: where it lies, its C signatures, and the errors behind a status."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int8,
    c_int16,
    c_int32,
    c_int64,
    c_uint8,
    c_uint32,
    c_void_p,
)
from pathlib import Path
from typing import Any, NoReturn

from llmint8.backends.decoder_header import DecoderStruct, TokensStruct
from llmint8.errors import BackendError

#: LLMINT8_ABI_VERSION of csrc/include/llmint8.h, which this file mirrors; a test compares the two.
ABI_VERSION = 2
#: Names another library to load, for example one built for tests.
LIBRARY_VARIABLE = "LLMINT8_LIBRARY"

_ISA_THREADS_DTYPE = [c_int32, c_int32, c_int32]
_SIZES = [c_int64, c_int64, c_int64]
_WEIGHT = [POINTER(c_int8), POINTER(c_float)]
_SECOND_DIGIT = [c_int64, POINTER(c_int32), POINTER(c_int8)]
_FLOATS, _BYTES = POINTER(c_float), POINTER(c_uint8)
_FOURBIT = [_BYTES, _FLOATS, c_int64, _FLOATS, _BYTES, _FLOATS, c_float]
_OPTIMIZER = [*[c_void_p] * 5, *[POINTER(c_float)] * 4]
#: Result and argument types of every function of the header.
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llmint8_abi_version": (c_int32, []),
    "llmint8_last_error": (c_char_p, []),
    "llmint8_cpu_features": (c_uint32, []),
    "llmint8_isa_count": (c_int32, []),
    "llmint8_isa_name": (c_char_p, [c_int32]),
    "llmint8_isa_supported": (c_int32, [c_int32, c_uint32]),
    "llmint8_best_isa": (c_int32, [c_uint32]),
    "llmint8_quantize_rows": (
        c_int32,
        [*_ISA_THREADS_DTYPE, c_int64, c_int64, c_void_p, c_float, POINTER(c_int16), POINTER(c_float)],
    ),
    "llmint8_linear": (
        c_int32,
        [
            *_ISA_THREADS_DTYPE,
            c_int32,
            *_SIZES,
            c_void_p,
            *_WEIGHT,
            c_void_p,
            c_float,
            *_SECOND_DIGIT,
            c_void_p,
        ],
    ),
    "llmint8_decode": (c_int32, [c_int32, c_int32, POINTER(DecoderStruct), POINTER(TokensStruct)]),
    "llmint8_input_gradient": (
        c_int32,
        [*_ISA_THREADS_DTYPE, *_SIZES, c_void_p, *_WEIGHT, *_SECOND_DIGIT, c_void_p],
    ),
    "llmint8_dequantize_4bit": (c_int32, [*_ISA_THREADS_DTYPE, c_int64, *_FOURBIT, c_void_p]),
    "llmint8_linear_4bit": (
        c_int32,
        [*_ISA_THREADS_DTYPE, c_int32, *_SIZES, c_void_p, *_FOURBIT, c_void_p, c_void_p],
    ),
    "llmint8_optimizer_step": (
        c_int32,
        [*_ISA_THREADS_DTYPE, c_int32, c_int32, c_int64, *_OPTIMIZER, POINTER(c_double)],
    ),
}


def find_library() -> Path | None:
    """The library's file, or None where the package was installed without a C++ compiler."""
    override = os.environ.get(LIBRARY_VARIABLE)
    if override:
        return Path(override)
    name = {"win32": "llmint8.dll", "darwin": "libllmint8.dylib"}.get(sys.platform, "libllmint8.so")
    # An editable install spreads the package over two folders: sources, and what was built.
    return next((Path(f, name) for f in sys.modules["llmint8"].__path__ if Path(f, name).exists()), None)


def load_library(path: Path) -> ctypes.CDLL:
    """Open the library and declare its functions; pointers may be given as plain addresses.

    Raises BackendError if it cannot be loaded or belongs to another version of the package.
    """
    try:
        library = ctypes.CDLL(str(path))
        version = int(library.llmint8_abi_version())
    except (OSError, AttributeError) as error:
        raise BackendError(f"{path} cannot be loaded ({error}); reinstall llmint8") from error
    if version != ABI_VERSION:
        raise BackendError(
            f"{path} has interface version {version}, this package needs {ABI_VERSION}; reinstall llmint8"
        )
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        # A typed pointer documents the header; ctypes converts an address only to an untyped one.
        function.argtypes = [c_void_p if hasattr(a, "contents") else a for a in arguments]
    return library


def raise_last_error(library: ctypes.CDLL, function: str) -> NoReturn:
    """Raise what a function says that returned a failure: MemoryError, or BackendError with its message."""
    message = library.llmint8_last_error().decode()
    if message == "out of memory":
        raise MemoryError(f"{function}: out of memory")
    raise BackendError(f"{function}: {message}")
