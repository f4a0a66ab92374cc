"""Make transformers know `quant_method: llmint8`, whichever of the two is imported first.

transformers has no plugin discovery, and importing its quantizers takes a second, which `import llmint8`
must not cost. So registration waits until transformers itself loads them.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTRY = "transformers.quantizers.auto"


def _register() -> None:
    try:
        importlib.import_module("llmint8.integrations.transformers")
        if importlib.util.find_spec("bitsandbytes") is None:
            # Nothing else could run such a model, so nothing is taken from anyone.
            importlib.import_module("llmint8.integrations.bitsandbytes").enable()
    except ImportError as error:  # the import of transformers must not fail for it
        warnings.warn(
            f"llmint8 cannot load models through this version of transformers ({error}); "
            "run: pip install 'llmint8[transformers]'",
            stacklevel=2,
        )


class _RegisterAfter(Loader):
    """Runs the real loader, then registers the quantizer."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register()


class _RegistryFinder(MetaPathFinder):
    """Sees the import of transformers' registry once, and steps aside."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


def install() -> None:
    """Register now if transformers' quantizers are loaded, otherwise as soon as they are."""
    if _REGISTRY in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegistryFinder())
