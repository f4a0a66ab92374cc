"""Which launches share a compiled kernel: those for which Triton's own dispatch would find the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llmint8.errors import InputError


class Compiled:
    """What Triton returns from a launch: to be run again, with every parameter in its order."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def run(self, *arguments) -> None:
        self.calls.append(arguments)


class Kernel:
    """A kernel of two tensors, an int, a float and two constants."""

    arg_names = ("x", "y", "n", "t", "RULE", "BLOCK")

    def __init__(self, compiles: bool) -> None:
        self.compiles, self.compiled = compiles, []

    def __getitem__(self, grid: tuple[int, ...]):
        def run(*arguments, **constants) -> Compiled | None:
            assert len(arguments) == 4
            assert constants == {"num_warps": 4, "BLOCK": 32, "RULE": 1}
            self.compiled.append(Compiled())
            return self.compiled[-1] if self.compiles else None

        return run


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    from llmint8.backends.triton import launch

    monkeypatch.setattr(launch, "_LAUNCHES", {})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: "stream", raising=False)

    def run(kernel: Kernel, x: torch.Tensor, y: torch.Tensor, *numbers) -> None:
        launch.launch(kernel, 7, (x, y), numbers, {"num_warps": 4, "BLOCK": 32, "RULE": 1})

    return run


def test_the_second_launch_goes_to_the_compiled_kernel(launch) -> None:
    kernel, x = Kernel(compiles=True), torch.zeros(64)
    launch(kernel, x, x, 64, 6.0)
    launch(kernel, x, x, 64, 5.0)
    (compiled,) = kernel.compiled
    hooks = None, None, None
    assert compiled.calls == [(7, 1, 1, "stream", "function", "metadata", *hooks, x, x, 64, 5.0, 1, 32)]


def test_what_is_compiled_differently_is_compiled_again(launch) -> None:
    kernel, x = Kernel(compiles=True), torch.zeros(64)
    others = (
        (x, x, 64), (x[1:], x, 64), (x, x.half(), 64),
        (x, x, 1), (x, x, 65), (x, x, 2**31 + 1), (x, x, 2**40),
    )  # fmt: skip
    for _ in range(2):
        for arguments in others:
            launch(kernel, *arguments, 6.0)
    assert [len(compiled.calls) for compiled in kernel.compiled] == [1] * len(others)
    other = Kernel(compiles=True)
    launch(other, x, x, 64, 6.0)
    assert len(other.compiled) == 1


def test_the_interpreter_compiles_nothing(launch) -> None:
    kernel, x = Kernel(compiles=False), torch.zeros(64)
    launch(kernel, x, x, 64, 6.0)
    launch(kernel, x, x, 64, 6.0)
    assert len(kernel.compiled) == 2


def test_on_rocm_triton_dispatches(launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    kernel, x = Kernel(compiles=True), torch.zeros(64)
    launch(kernel, x, x, 64, 6.0)
    launch(kernel, x, x, 64, 6.0)
    assert len(kernel.compiled) == 2


def test_tensors_of_two_devices_are_refused() -> None:
    from llmint8.backends.triton.gradient import input_gradient
    from llmint8.backends.triton.linear import linear

    weight, absmax = torch.zeros(4, 8, dtype=torch.int8), torch.ones(4)
    with pytest.raises(InputError, match=r"meta.*move one"):
        linear(torch.ones(2, 8), weight, absmax.to("meta"), None, 6.0)
    with pytest.raises(InputError, match=r"meta.*move one"):
        input_gradient(torch.ones(2, 4), weight.to("meta"), absmax)
