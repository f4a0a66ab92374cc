"""Code and checkpoints made for bitsandbytes, run by llmint8; bitsandbytes itself is never imported.

`enable()` makes transformers load `BitsAndBytesConfig(load_in_8bit=True)`, and what bitsandbytes saved in
8 bits, as `Int8Linear` layers, and the same in 4 bits as `Linear4bit`. That changes a table of transformers
for the whole process: it happens by itself where bitsandbytes is not installed, and by a call or a
`with enabled():` where it is. `Linear8bitLt` is the layer under the name and with the arguments that such
code uses.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmint8.integrations.linear8bitlt import Linear8bitLt, Linear8bitLtState

__all__ = ["Linear8bitLt", "Linear8bitLtState", "disable", "enable", "enabled", "is_enabled", "is_installed"]

#: The names under which transformers keeps the quantizers of bitsandbytes, and its own classes for them.
_ENTRIES = {"bitsandbytes_8bit": "Bnb8BitHfQuantizer", "bitsandbytes_4bit": "Bnb4BitHfQuantizer"}


def is_installed() -> bool:
    """Whether bitsandbytes can be imported; then llmint8 runs its models only when it is asked to."""
    return importlib.util.find_spec("bitsandbytes") is not None


def enable() -> None:
    """From now on llmint8 runs what is loaded with a `BitsAndBytesConfig`, in 8 bits or in 4.

    Models that are loaded already stay as they are.
    Raises ImportError if transformers is not installed.
    """
    _registry().AUTO_QUANTIZER_MAPPING.update(_QUANTIZERS)


def disable() -> None:
    """Give such models back to bitsandbytes; where it is not installed, transformers refuses them."""
    registry = _registry()
    for entry, name in _ENTRIES.items():
        registry.AUTO_QUANTIZER_MAPPING[entry] = getattr(registry, name)


def is_enabled() -> bool:
    """Whether llmint8 runs what is loaded with a `BitsAndBytesConfig`."""
    mapping = _registry().AUTO_QUANTIZER_MAPPING
    return all(mapping[entry] is _QUANTIZERS[entry] for entry in _ENTRIES)


@contextmanager
def enabled() -> Iterator[None]:
    """`enable()` for the models that are loaded inside a `with` block; afterwards all is as it was."""
    mapping = _registry().AUTO_QUANTIZER_MAPPING
    before = {entry: mapping[entry] for entry in _ENTRIES}
    enable()
    try:
        yield
    finally:
        mapping.update(before)


def _registry() -> Any:
    return importlib.import_module("transformers.quantizers.auto")


def _quantizer_8bit(config: Any, **kwargs: Any) -> Any:
    """What transformers calls for a quantizer. The class is imported only now: `enable()` may run while
    transformers' quantizers are being imported, which that class derives from."""
    from llmint8.integrations.bitsandbytes_quantizer import BitsAndBytesQuantizer

    return BitsAndBytesQuantizer(config, **kwargs)


def _quantizer_4bit(config: Any, **kwargs: Any) -> Any:
    from llmint8.integrations.bitsandbytes_4bit import FourbitHfQuantizer

    return FourbitHfQuantizer(config, **kwargs)


_QUANTIZERS = {"bitsandbytes_8bit": _quantizer_8bit, "bitsandbytes_4bit": _quantizer_4bit}
