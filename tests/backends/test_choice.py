"""Which kernels run: the best there are, the ones forced, or the reference with a warning."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from agreement.cases import random_case, same_bits
from llmint8 import BackendError, backends, ops
from llmint8.backends import library
from llmint8.backends.native import Native, engine

PROGRAM = """
import torch, llmint8
from llmint8 import ops
y = ops.linear(torch.ones(1, 8), torch.ones(2, 8, dtype=torch.int8), torch.ones(2), None, 6.0)
active = [s.name for s in llmint8.backends.status() if s.active]
print(*active, y.tolist())
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LLMINT8_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_status_lists_everything_and_one_is_active() -> None:
    rows = backends.status()
    assert [row.name for row in rows[:2]] == ["reference", "native:scalar"]
    assert sum(row.active for row in rows if row.name != "triton") == 1
    assert all(row.available for row in rows if row.active)
    assert all(row.detail for row in rows)


@pytest.mark.parametrize("isa", ["reference", *(i for i, had in Native().isas.items() if had)])
def test_forced(isa: str) -> None:
    result = run(LLMINT8_ISA=isa)
    name = isa if isa == "reference" else f"native:{isa}"
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == name
    assert result.stderr == ""


def test_forced_but_unknown_is_an_error_that_lists_what_there_is() -> None:
    result = run(LLMINT8_ISA="mmx")
    assert result.returncode != 0
    assert "LLMINT8_ISA=mmx: unknown instruction set 'mmx'; this build has scalar" in result.stderr


def test_forced_but_not_on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without any feature is one that has the scalar kernels alone."""

    class OldCpu:
        def __init__(self, real: object) -> None:
            self._real = real

        def llmint8_cpu_features(self) -> int:
            return 0

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    real = library.load_library
    monkeypatch.setattr("llmint8.backends.native.load_library", lambda path: OldCpu(real(path)))
    assert Native().isa == "scalar"
    others = [isa for isa, had in Native().isas.items() if not had]
    assert others == [isa for isa in Native().isas if isa != "scalar"]
    for isa in others:
        with pytest.raises(BackendError, match=f"this CPU lacks {isa}; it can run scalar"):
            Native(isa)


def test_without_a_library_the_reference_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmint8.backends.native.find_library", lambda: None)
    engine.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"slow reference.*install one"):
            assert engine() is None
        case = random_case(0)
        assert same_bits(ops.linear(*case.arguments), ops.reference_linear(*case.arguments))
        rows = backends.status()
        on_cpu = [(row.name, row.active) for row in rows if row.name != "triton"]
        assert on_cpu == [("reference", True), ("native", False)]
        assert "reinstall llmint8" in rows[1].detail
    finally:
        engine.cache_clear()


def test_a_torn_library_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = tmp_path / "libllmint8.so"
    torn.write_bytes(b"\x7fELF")
    monkeypatch.setenv(library.LIBRARY_VARIABLE, str(torn))
    with pytest.raises(BackendError, match=r"libllmint8\.so cannot be loaded"):
        Native()


def test_failures_in_c_become_errors() -> None:
    native = Native()
    with pytest.raises(BackendError, match="0 <= k <= 131072"):
        native.quantize_rows(torch.ones(1, 131_073), 0.0)


def test_several_python_threads_at_once() -> None:
    case = random_case(11, largest=500)
    want = ops.linear(*case.arguments)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(ops.linear(*case.arguments))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(same_bits(result, want) for result in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork() -> None:
    case = random_case(11, largest=500)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a team that waits for threads which fork() did not copy would hang
    want = ops.linear(*case.arguments)
    child = os.fork()
    if child == 0:
        os._exit(0 if same_bits(ops.linear(*case.arguments), want) else 1)
    torch.set_num_threads(threads)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
