"""transformers, imported when needed, and silent: the commands say themselves what the user must know."""

from __future__ import annotations

import os
from types import ModuleType

from llmint8.errors import LLMInt8Error


def quiet_transformers() -> ModuleType:
    """transformers, without progress bars of its own and remarks; it downloads nothing that is not asked for.

    Raises LLMInt8Error if it is not installed.
    """
    # Read once, when transformers is imported. A user, or `llmint8 eval --download`, may have said otherwise.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
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
