"""Act once another library has been imported, without importing it.

Most libraries have no plugin discovery, and importing them takes seconds, which `import llmint8` must not
cost.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterImport(MetaPathFinder):
    """Sees the import of one module, and leaves once it has happened."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action
        self._searching = False

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname != self._name or self._searching:
            return None
        # To ask for a spec is not yet to import: libraries ask whether others are there.
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            # An attribute of this loader alone, so that everything else it can do stays reachable.
            setattr(spec.loader, "exec_module", self._acting_after(spec.loader.exec_module))  # noqa: B010
        return spec

    def _acting_after(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._action()

        return execute_and_act


def run_after_import(name: str, action: Callable[[], None]) -> None:
    """Run `action` now if the module is loaded already, otherwise once, as soon as it is."""
    if sys.modules.get(name) is not None:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


def replace_function(original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Put `replacement` where a loaded module holds `original` by its own name, as `from ... import` does."""
    name = original.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, replacement)
