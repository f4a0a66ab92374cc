"""Register with other libraries, whichever is imported first, and import none of them."""

from __future__ import annotations

import functools
import importlib
import warnings

from llmint8.integrations import transformers_hook
from llmint8.integrations.import_hook import run_after_import

#: Each has a module of its name here; to import that module is to register.
_LIBRARIES = ("accelerate", "peft")


def _register(library: str) -> None:
    try:
        importlib.import_module(f"llmint8.integrations.{library}")
    except (ImportError, AttributeError) as error:  # the import of the library must not fail for it
        warnings.warn(
            f"llmint8 does not know this version of {library} ({error}); run: pip install 'llmint8[peft]'",
            stacklevel=2,
        )


def install() -> None:
    """Register with what is loaded now, and with the rest as soon as it is."""
    transformers_hook.install()
    for library in _LIBRARIES:
        run_after_import(library, functools.partial(_register, library))
    run_after_import("transformers.trainer_optimizer", functools.partial(_register, "trainer"))
