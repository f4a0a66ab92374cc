"""Code and checkpoints made for bitsandbytes, run by llmint8; bitsandbytes itself is never imported.

`enable()` makes transformers load `BitsAndBytesConfig(load_in_8bit=True)`, and what bitsandbytes saved in
8 bits, as `Int8Linear` layers. That changes a table of transformers for the whole process: it happens by
itself where bitsandbytes is not installed, and by a call or a `with enabled():` where it is.
`Linear8bitLt` is the layer under the name and with the arguments that such code uses.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmint8.integrations.linear8bitlt import Linear8bitLt, Linear8bitLtState

__all__ = ["Linear8bitLt", "Linear8bitLtState", "disable", "enable", "enabled", "is_enabled", "is_installed"]

#: The name under which transformers keeps the quantizer for `BitsAndBytesConfig(load_in_8bit=True)`.
_ENTRY = "bitsandbytes_8bit"


def is_installed() -> bool:
    """Whether bitsandbytes can be imported; then llmint8 runs its models only when it is asked to."""
    return importlib.util.find_spec("bitsandbytes") is not None


def enable() -> None:
    """From now on llmint8 runs what is loaded with `BitsAndBytesConfig(load_in_8bit=True)`.

    4 bits stay with bitsandbytes. Models that are loaded already stay as they are.
    Raises ImportError if transformers is not installed.
    """
    _registry().AUTO_QUANTIZER_MAPPING[_ENTRY] = _quantizer


def disable() -> None:
    """Give 8-bit models back to bitsandbytes; where it is not installed, transformers refuses them."""
    registry = _registry()
    registry.AUTO_QUANTIZER_MAPPING[_ENTRY] = registry.Bnb8BitHfQuantizer


def is_enabled() -> bool:
    """Whether llmint8 runs what is loaded with `BitsAndBytesConfig(load_in_8bit=True)`."""
    return _registry().AUTO_QUANTIZER_MAPPING[_ENTRY] is _quantizer


@contextmanager
def enabled() -> Iterator[None]:
    """`enable()` for the models that are loaded inside a `with` block; afterwards all is as it was."""
    mapping = _registry().AUTO_QUANTIZER_MAPPING
    before = mapping[_ENTRY]
    enable()
    try:
        yield
    finally:
        mapping[_ENTRY] = before


def _registry() -> Any:
    return importlib.import_module("transformers.quantizers.auto")


def _quantizer(config: Any, **kwargs: Any) -> Any:
    """What transformers calls for a quantizer. The class is imported only now: `enable()` may run while
    transformers' quantizers are being imported, which that class derives from."""
    from llmint8.integrations.bitsandbytes_quantizer import BitsAndBytesQuantizer

    return BitsAndBytesQuantizer(config, **kwargs)
