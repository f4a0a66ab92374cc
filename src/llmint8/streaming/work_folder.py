"""The hidden folder beside the target in which a conversion grows, is interrupted, and goes on.

`.OUT.partial/` holds `model/`, the folder to be, and `state.json`, which says what is converted and how. A
shard has its name only when it is whole, so what has a name is kept; `OUT` appears by a rename at the end.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmint8.errors import CheckpointError
from llmint8.streaming.shard import sync_folder, write_text

try:
    import fcntl
except ImportError:  # a system without it has no lock, and two conversions to one folder are not noticed
    fcntl = None  # type: ignore[assignment]


class WorkFolder:
    """The partial result of one conversion. `model`: the folder that will become the target."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out.with_name(f".{out.name}.partial")
        self.model = self.root / "model"
        self._state = self.root / "state.json"
        self._old = self.root / "replaced"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises CheckpointError if another conversion does."""
        self.root.mkdir(exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise CheckpointError(
                        f"another conversion to {self.out} is running; wait for it, or choose another folder"
                    ) from error
            yield

    def recover(self) -> None:
        """Repair what a process left that died between two renames at the end of its work."""
        self._put_back()
        if self.root.exists() and self.out.exists() and not self.model.exists():
            self.remove()

    def _put_back(self) -> None:
        if self._old.exists() and not self.out.exists():
            self._old.rename(self.out)

    def resume(self, state: dict[str, Any]) -> None:
        """Keep what is there if it was begun with the same state; otherwise start afresh."""
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self._state.read_text(encoding="utf-8")) == state:
                self.model.mkdir(exist_ok=True)
                for torn in self.model.glob("*.torn"):
                    torn.unlink()
                return
        if self.model.exists():
            shutil.rmtree(self.model)
        self.model.mkdir()
        write_text(self._state, json.dumps(state))

    def finish(self) -> None:
        """Put the model where it belongs, in place of what `out` was."""
        sync_folder(self.model)
        if self.out.exists():
            self.out.rename(self._old)
        try:
            self.model.rename(self.out)
        except BaseException:
            self._put_back()
            raise
        sync_folder(self.out.parent)
        self.remove()

    def remove(self) -> None:
        """Forget the partial result."""
        shutil.rmtree(self.root, ignore_errors=True)
