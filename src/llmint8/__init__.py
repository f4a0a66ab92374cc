"""LLM.int8() inference for PyTorch models: int8 weights and activations, outliers kept at 16 bits.

One line converts a model in memory, `quantize_model(model)`, or while transformers loads it,
`from_pretrained(path, quantization_config=Int8Config())`.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from llmint8 import backends, optim
from llmint8.config import Int8Config
from llmint8.convert import (
    ConversionReport,
    dequantize_model,
    quantize_model,
    quantize_model_4bit,
    set_threshold,
)
from llmint8.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    InputError,
    LLMInt8Error,
    QuantizationError,
)
from llmint8.integrations import hooks
from llmint8.integrations.merging import MergeReport, merge_report
from llmint8.nn import Int8Embedding, Int8Experts, Int8Linear, Linear4bit
from llmint8.streaming import convert_checkpoint

if TYPE_CHECKING:
    from llmint8.fast import optimize_for_inference

__version__ = version("llmint8")

#: Public names whose module needs transformers: it is imported when they are first used.
_LAZY = {"optimize_for_inference": "llmint8.fast"}

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "ConversionReport",
    "InputError",
    "Int8Config",
    "Int8Embedding",
    "Int8Experts",
    "Int8Linear",
    "LLMInt8Error",
    "Linear4bit",
    "MergeReport",
    "QuantizationError",
    "__version__",
    "convert_checkpoint",
    "dequantize_model",
    "merge_report",
    "optim",
    "optimize_for_inference",
    "quantize_model",
    "quantize_model_4bit",
    "set_threshold",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


backends.register()
hooks.install()
