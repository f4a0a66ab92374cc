"""The process of one candidate: it imports one library, holds one model, and computes when it is asked to.

Requests come as lines of JSON on stdin, answers leave as such on what was stdout; what a library prints goes
to stderr. The parent's side of it is `process.py`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from time import perf_counter
from typing import Any

from llmint8.bench.memory import peak, reset_peak
from llmint8.bench.model.entries import entry_called
from llmint8.bench.model.generation import Runner
from llmint8.bench.timing import one_line


class Session:
    """A runner and the memory of this process: what it held with all libraries in use, and no model."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._base = reset_peak()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load the model, `{}`, or generate, `{"rows": [B][T], "new_tokens": n}`.

        Answers seconds, tokens, and in `peak_bytes` the most that this process has held beyond the base since
        it began to load; None where the system does not tell.
        """
        if "rows" in request:
            result = asdict(self._runner.generate(request["rows"], request["new_tokens"]))
        else:
            start = perf_counter()
            self._runner.load()
            result = {"seconds": perf_counter() - start}
        high = peak()
        return {**result, "peak_bytes": None if self._base is None or high is None else high - self._base}


def main() -> None:
    """Serve until stdin ends. Arguments as JSON: name of the candidate, path of its model, threads."""
    name, path, threads = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    session: Session | None = None
    try:
        session = Session(entry_called(name).make(path, threads))
    except Exception as error:  # another library's: it raises what it likes
        _reply(replies, {"error": one_line(error)})
        return
    _reply(replies, {})
    for line in sys.stdin:
        try:
            _reply(replies, session.answer(json.loads(line)))
        except Exception as error:
            _reply(replies, {"error": one_line(error)})


def _reply(replies: Any, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
