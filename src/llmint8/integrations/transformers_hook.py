"""Make transformers know `quant_method: llmint8`, whichever of the two is imported first.

transformers has no plugin discovery, and importing its quantizers takes a second, which `import llmint8`
must not cost. So registration waits until transformers itself loads them.
"""

from __future__ import annotations

import importlib
import warnings

from llmint8.integrations import bitsandbytes
from llmint8.integrations.import_hook import run_after_import

_REGISTRY = "transformers.quantizers.auto"


def _register() -> None:
    try:
        importlib.import_module("llmint8.integrations.transformers")
        if not bitsandbytes.is_installed():
            bitsandbytes.enable()  # nothing else could run such a model, so nothing is taken from anyone
    except ImportError as error:  # the import of transformers must not fail for it
        warnings.warn(
            f"llmint8 cannot load models through this version of transformers ({error}); "
            "run: pip install 'llmint8[transformers]'",
            stacklevel=2,
        )


def install() -> None:
    """Register now if transformers' quantizers are loaded, otherwise as soon as they are."""
    run_after_import(_REGISTRY, _register)
