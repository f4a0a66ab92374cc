"""The parent's side of a candidate's process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO, Any, cast

from llmint8.errors import LLMInt8Error

_CODE = "from llmint8.bench.model.worker import main; main()"


class Worker:
    """A process that holds one candidate; it computes only while `ask` waits for it.

    name: of the candidate. path: of its model. threads: for everything that it computes.
    Raises LLMInt8Error, with the reason, if its libraries cannot be imported.
    """

    def __init__(self, name: str, path: str, threads: int) -> None:
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, json.dumps([name, path, threads])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request of `worker.Session`. Raises LLMInt8Error with what went wrong there."""
        pipe = cast("IO[str]", self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it has died: reading its answer says how
            pipe.write(json.dumps(request) + "\n")
            pipe.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            code = self._process.wait()
            self._complaints.seek(0)
            said = self._complaints.read().strip().splitlines()
            raise LLMInt8Error(f"its process ended with code {code}" + (f": {said[-1]}" if said else ""))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LLMInt8Error(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
