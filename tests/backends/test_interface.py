"""The C header and its Python mirror say the same."""

import ctypes
import re
from pathlib import Path

import pytest

from llmint8.backends import decoder_header
from llmint8.backends.library import ABI_VERSION, SIGNATURES

FOLDER = Path(__file__).parents[2] / "csrc" / "include"
TEXT = re.sub(r"/\*.*?\*/", "", "".join(p.read_text() for p in sorted(FOLDER.glob("*.h"))), flags=re.DOTALL)
#: C structs, and their mirrors in Python.
STRUCTS = {
    "llmint8_decoder_linear": decoder_header.LinearStruct,
    "llmint8_decoder_layer": decoder_header.LayerStruct,
    "llmint8_decoder": decoder_header.DecoderStruct,
    "llmint8_decoder_tokens": decoder_header.TokensStruct,
}
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
        ctypes.c_uint8: "uint8_t",
        ctypes.c_uint32: "uint32_t",
        ctypes.c_float: "float",
        ctypes.c_double: "double",
        ctypes.c_void_p: "void*",
        ctypes.c_char_p: "char*",
        **{mirror: name for name, mirror in STRUCTS.items()},
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


def fields(declarations: str) -> list[tuple[str, str]]:
    """Names and types of the fields of a struct `int64_t a, b; const void* c;`, pointers as `void*`."""
    result = []
    for line in re.findall(r"[^;]+;", declarations):
        kind, names = re.match(r"\s*(.+?)\s*(\w+(?:,\s*\w+)*);", line.replace("const", " ")).groups()
        result += [(name, "void*" if "*" in kind else kind) for name in re.split(r",\s*", names)]
    return result


@pytest.mark.parametrize("name", STRUCTS)
def test_the_same_structs(name: str) -> None:
    (declared,) = re.findall(rf"typedef struct \{{([^}}]*)\}} {name};", TEXT)
    assert fields(declared) == [(field, spell(kind)) for field, kind in STRUCTS[name]._fields_]


def test_the_same_activations() -> None:
    declared = {name.lower(): int(value) for name, value in re.findall(r"LLMINT8_([A-Z_]+) = (\d+)", TEXT)}
    assert {name: declared[name] for name in decoder_header.ACTIVATIONS} == decoder_header.ACTIVATIONS


def test_the_same_version() -> None:
    assert int(re.search(r"LLMINT8_ABI_VERSION (\d+)", TEXT)[1]) == ABI_VERSION
