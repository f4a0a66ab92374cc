"""The C header and its Python mirror say the same."""

import ctypes
import re
from pathlib import Path

import pytest

from llmint8.backends.library import ABI_VERSION, SIGNATURES

HEADER = Path(__file__).parents[2] / "csrc" / "include" / "llmint8.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
PROTOTYPES = {
    m[2]: (m[1], m[3])
    for m in re.finditer(r"LLMINT8_API ([\w* ]+?[ *])(llmint8_\w+)\((.*?)\);", TEXT, re.DOTALL)
}


def spell(ctype: object) -> str:
    """The C spelling of a ctypes type, without const."""
    names = {
        ctypes.c_int8: "int8_t",
        ctypes.c_int16: "int16_t",
        ctypes.c_int32: "int32_t",
        ctypes.c_int64: "int64_t",
        ctypes.c_uint32: "uint32_t",
        ctypes.c_float: "float",
        ctypes.c_void_p: "void*",
        ctypes.c_char_p: "char*",
    }
    return names.get(ctype) or f"{names[ctype._type_]}*"


def parse(declaration: str) -> str:
    """The type of `const int8_t* weight` or `const char*`: `int8_t*`, `char*`."""
    without = declaration.replace("const ", "").strip()
    return re.match(r"\w+\*?", without)[0]


def test_the_same_functions() -> None:
    assert PROTOTYPES.keys() == SIGNATURES.keys()
    assert len(PROTOTYPES) > 5


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_same_types(name: str) -> None:
    result, arguments = PROTOTYPES[name]
    want_result, want_arguments = SIGNATURES[name]
    assert parse(result) == spell(want_result)
    declared = [] if arguments.strip() == "void" else [parse(a) for a in arguments.split(",")]
    assert declared == [spell(a) for a in want_arguments]


def test_the_same_version() -> None:
    assert int(re.search(r"LLMINT8_ABI_VERSION (\d+)", TEXT)[1]) == ABI_VERSION
