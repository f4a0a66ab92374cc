"""The report of a conversion: numbers that add up, JSON types, and a table that cuts nothing off."""

import json

import pytest

import tiny
from llmint8 import Int8Config, quantize_model
from llmint8.convert import ConversionReport, Row, human_bytes

REPORT = ConversionReport(
    (
        Row("layers.0.up", "Linear", "int8", 400, 104),
        Row("layers.1.up", "Linear", "int8", 400, 104),
        Row("layers.1.down", "Linear", "skip_modules: down", 100, 100),
        Row("head", "Linear", "output head", 50, 50),
    ),
    1000,
    408,
)


def test_rows_are_either_converted_or_skipped() -> None:
    assert [row.name for row in REPORT.converted] == ["layers.0.up", "layers.1.up"]
    assert [row.decision for row in REPORT.skipped] == ["skip_modules: down", "output head"]


def test_json_holds_everything() -> None:
    found = json.loads(json.dumps(REPORT.to_dict()))
    assert [row["name"] for row in found["converted"]] == ["layers.0.up", "layers.1.up"]
    assert found["skipped"][1] == {
        "name": "head",
        "kind": "Linear",
        "decision": "output head",
        "bytes_before": 50,
        "bytes_after": 50,
        "int16_columns": 0,
    }
    assert (found["bytes_before"], found["bytes_after"]) == (1000, 408)


def test_the_table_joins_layers_and_totals() -> None:
    lines = [" ".join(line.replace("│", " ").split()) for line in str(REPORT).splitlines()]
    assert "layers.*.up Linear int8 2 800 B 208 B" in lines
    assert "layers.1.down Linear skip_modules: down 1 100 B 100 B" in lines
    assert "whole model 1000 B 408 B (41%)" in lines


def test_long_names_are_not_cut_off() -> None:
    name = "encoder." + "a_very_long_name_of_a_module." * 6 + "end"
    text = str(ConversionReport((Row(name, "Linear", "int8", 4, 1),), 4, 1))
    column = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
    assert name in column
    assert "…" not in text


def test_bytes_of_a_real_conversion_add_up() -> None:
    model = tiny.tiny_llama()
    before = sum(p.nbytes for p in model.parameters())
    report = quantize_model(model, Int8Config(skip_modules=["down_proj"]))
    after = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    buffers = sum(b.nbytes for n, b in model.named_buffers() if not n.endswith(("SCB", "weight_format")))
    assert report.bytes_before == before + buffers
    assert report.bytes_after == after
    saved = sum(row.bytes_before - row.bytes_after for row in report.rows)
    assert report.bytes_before - report.bytes_after == saved
    for row in report.converted:
        n, k = model.get_submodule(row.name).weight.shape
        assert (row.bytes_before, row.bytes_after) == (4 * n * k, n * k + 4 * n + 1)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (1024**3, "1.0 GiB"),
        (5000 * 1024**3, "5000.0 GiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text
