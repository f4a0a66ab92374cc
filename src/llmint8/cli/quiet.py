"""transformers, imported when needed, and silent: the commands say themselves what the user must know."""

from __future__ import annotations

import os
from types import ModuleType

from llmint8.errors import LLMInt8Error


def quiet_transformers() -> ModuleType:
    """transformers, without downloads, progress bars of its own, and remarks.

    Raises LLMInt8Error if it is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported
    try:
        import transformers
    except ImportError as error:
        raise LLMInt8Error(
            f"transformers cannot be imported ({error}); run: pip install 'llmint8[transformers]'"
        ) from error
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    module: ModuleType = transformers
    return module
