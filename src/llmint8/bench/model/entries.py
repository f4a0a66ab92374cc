"""Who takes part: each in its own process, from the form in which its users keep a model on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from llmint8.bench.model.generation import Runner
from llmint8.numerics import DEFAULT_THRESHOLD

#: A model on disk: floats, ours, ours with an int8 head, and what other libraries read.
Form = Literal["float32", "bfloat16", "int8", "int8 head", "bitsandbytes", "gguf"]
#: What the others' tokens are compared with.
FLOAT32 = "transformers float32"


@dataclass(frozen=True)
class Entry:
    """One candidate. form: what it loads. make: its runner from that path and a count of threads; it imports
    its library. package: what must be installed for it."""

    name: str
    form: Form
    make: Callable[[str, int], Runner]
    package: str = "transformers"

    def version(self) -> str | None:
        """Of its package, None if that is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def _transformers(path: str, threads: int, dtype: str, **given: Any) -> Runner:
    from llmint8.bench.model.transformers_runner import TransformersRunner

    return TransformersRunner(path, threads, dtype, **given)


def _float32(path: str, threads: int) -> Runner:
    return _transformers(path, threads, "float32")


def _bfloat16(path: str, threads: int) -> Runner:
    return _transformers(path, threads, "bfloat16")


def _bitsandbytes(path: str, threads: int) -> Runner:
    import logging

    import bitsandbytes  # noqa: F401

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it remarks on bfloat16 in every call
    return _transformers(path, threads, "bfloat16")


def _torchao(path: str, threads: int) -> Runner:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    return _transformers(path, threads, "bfloat16", quantization_config=config)


def _llama_cpp(path: str, threads: int) -> Runner:
    from llmint8.bench.model.llama_cpp_runner import LlamaCppRunner

    return LlamaCppRunner(path, threads)


def _ours(path: str, threads: int) -> Runner:
    return _transformers(path, threads, "bfloat16", int8=True)


def _ours_fast(path: str, threads: int) -> Runner:
    return _transformers(path, threads, "bfloat16", int8=True, fast=True)


ENTRIES = (
    Entry(FLOAT32, "float32", _float32),
    Entry("transformers bfloat16", "bfloat16", _bfloat16),
    Entry(f"bitsandbytes {DEFAULT_THRESHOLD}", "bitsandbytes", _bitsandbytes, "bitsandbytes"),
    Entry("torchao int8", "bfloat16", _torchao, "torchao"),
    Entry("llama.cpp Q8_0", "gguf", _llama_cpp, "llama-cpp-python"),
    Entry("llmint8", "int8", _ours),
    Entry("llmint8 fast", "int8", _ours_fast),
    Entry("llmint8 fast, int8 head", "int8 head", _ours_fast),
)


def entry_called(name: str) -> Entry:
    """The candidate of that name."""
    return next(entry for entry in ENTRIES if entry.name == name)
