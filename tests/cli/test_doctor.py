"""`llmint8 doctor` tells a healthy machine from one with a problem, and names the cost of what is missing."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import version

import pytest
import torch

from llmint8 import backends, ops
from llmint8.backends import BackendStatus
from llmint8.errors import BackendError

KERNELS = [
    BackendStatus("reference", True, False, "plain torch"),
    BackendStatus("native:scalar", True, True, "kernels from lib"),
    BackendStatus("native:avx512vnni", False, False, "this CPU lacks the instructions"),
]


@pytest.fixture
def kernels(monkeypatch):
    """Pretend that the backends are in a given state."""
    monkeypatch.delenv("LLMINT8_ISA", raising=False)
    return lambda rows: monkeypatch.setattr(backends, "status", lambda: rows)


def findings(outcome):
    return {f["subject"]: (f["state"], f["detail"]) for f in outcome.json["findings"]}


def test_this_machine(run):
    outcome = run("doctor", "--json")
    found = findings(outcome)
    assert found["torch"] == ("ok", version("torch"))
    assert {row.name for row in backends.status()} <= found.keys()
    assert outcome.code == (0 if outcome.json["healthy"] else 1)


def test_a_healthy_machine(run, kernels):
    kernels(KERNELS)
    found = findings(run("doctor", "--json", code=0))
    assert found["reference"][0] == "unused"
    assert found["native:scalar"] == ("ok", "kernels from lib (active)")
    assert found["native:avx512vnni"] == ("missing", "this CPU lacks the instructions")
    assert found["kernels"] == ("ok", "native:scalar returns the bits of the reference")


def test_the_table_says_the_same(run, kernels):
    kernels(KERNELS)
    shown = run("doctor", code=0).stdout
    assert "native:scalar returns the bits of the reference" in shown
    assert version("torch") in shown


def test_only_the_reference_is_a_problem_unless_it_was_asked_for(run, kernels, monkeypatch):
    kernels([
        BackendStatus("reference", True, True, "plain torch"),
        BackendStatus("native", False, False, "no C++ compiler was found"),
    ])  # fmt: skip
    outcome = run("doctor", "--json", code=1)
    assert outcome.json["healthy"] is False
    assert findings(outcome)["native"] == ("missing", "no C++ compiler was found")
    assert findings(outcome)["kernels"][0] == "problem"
    monkeypatch.setenv("LLMINT8_ISA", "reference")
    run("doctor", code=0)


def test_a_forced_instruction_set_that_cannot_run_is_a_problem(run, monkeypatch):
    def status():
        raise BackendError("LLMINT8_ISA=mmx: unknown instruction set 'mmx'")

    monkeypatch.setattr(backends, "status", status)
    assert findings(run("doctor", "--json", code=1))["kernels"] == (
        "problem",
        "LLMINT8_ISA=mmx: unknown instruction set 'mmx'",
    )


def test_kernels_that_compute_something_else_are_a_problem(run, kernels, monkeypatch):
    kernels(KERNELS)
    right = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *a: torch.nextafter(right(*a), torch.tensor(torch.inf)))
    state, detail = findings(run("doctor", "--json", code=1))["kernels"]
    assert state == "problem"
    assert "native:scalar differs from the reference" in detail


def test_a_missing_package_is_named_with_its_cost(run, kernels, monkeypatch):
    kernels(KERNELS)

    def without_gguf(name):
        if name == "gguf":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_gguf)
    assert findings(run("doctor", "--json", code=0))["gguf"] == (
        "missing",
        "no demo, and no model named smollm2; pip install gguf",
    )
