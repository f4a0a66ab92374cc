"""The run: every candidate in a process of its own, all alive, one computing at a time, in changing order."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmint8.bench.measure import environment
from llmint8.bench.model.entries import ENTRIES, FLOAT32, Entry
from llmint8.bench.model.forms import Forms
from llmint8.bench.model.process import Worker
from llmint8.bench.model.result import Cell, ModelBenchmark, Result, Workload
from llmint8.errors import InputError, LLMInt8Error

#: Fresh processes of each candidate that load the model.
LOADS = 3
#: Seconds of rest before each measurement, in which the threads of the one before go to sleep.
_REST = 0.05
#: Prompt and new tokens of a candidate's first call on a workload, which does not count.
_WARM_UP = 8, 2


def run_model_benchmark(
    folder: Path,
    ids: Sequence[int],
    workloads: Sequence[Workload],
    rounds: int,
    budget: float,
    threads: int,
    step: Callable[[int, int], None],
    entries: Sequence[Entry] = ENTRIES,
) -> ModelBenchmark:
    """Measure every candidate that is installed on the float model in `folder`.

    ids: a text in tokens of the model, out of which the prompts are cut.
    rounds: runs of each candidate on each workload. budget: one that has used as many seconds sits out.
    threads: of every candidate. step: called with (done, total) as the work moves on.
    Raises InputError for a text shorter than a prompt, LLMInt8Error if no candidate can load the model.
    """
    longest = max(load.prompt_tokens for load in workloads)
    if len(ids) < longest:
        raise InputError(f"the text holds {len(ids)} tokens, fewer than the {longest} of a prompt")
    with tempfile.TemporaryDirectory(prefix="llmint8-bench-") as work, ExitStack() as stack:
        run = _Run(entries, min(rounds, LOADS), len(workloads) * rounds, threads, step)
        run.make_forms(Forms(folder, Path(work)))
        run.load(stack)
        for load in workloads:
            run.take_turns(cut_prompts(ids, load), load, rounds, budget)
        results = run.results()
    versions = {entry.package: entry.version() for entry in entries}
    about = {
        **environment(),
        "threads": threads,
        **{name: v for name, v in versions.items() if v is not None},
    }
    return ModelBenchmark(about, folder.name, list(workloads), results)


def cut_prompts(ids: Sequence[int], load: Workload) -> list[list[int]]:
    """The prompts of a workload, spread over the text so that they overlap as little as it allows."""
    room = len(ids) - load.prompt_tokens
    stride = min(load.prompt_tokens, room // max(load.batch - 1, 1))
    return [list(ids[row * stride : row * stride + load.prompt_tokens]) for row in range(load.batch)]


class _Run:
    """What has been measured so far, and who is still in."""

    def __init__(
        self,
        entries: Sequence[Entry],
        loads: int,
        runs: int,
        threads: int,
        step: Callable[[int, int], None],
    ) -> None:
        self._entries, self._loads, self._threads, self._step = entries, loads, threads, step
        self.failures = {e.name: f"{e.package} is not installed" for e in entries if e.version() is None}
        self._done, self._total = 0, len(self._in()) * (1 + loads + runs)
        self._shuffle = random.Random(0).shuffle
        self._paths: dict[str, Path] = {}
        self._workers: dict[str, Worker] = {}
        self._load_seconds: dict[str, list[float]] = {e.name: [] for e in entries}
        self._load_peaks: dict[str, int | None] = {}
        self._cells: dict[str, list[Cell | None]] = {e.name: [] for e in entries}

    def _in(self) -> list[Entry]:
        return [entry for entry in self._entries if entry.name not in self.failures]

    def _moved(self) -> None:
        self._done += 1
        self._step(self._done, self._total)

    def make_forms(self, forms: Forms) -> None:
        """Write what candidates load; who has no form of this model is out."""
        for entry in self._in():
            try:
                self._paths[entry.name] = forms.path(entry.form)
            except LLMInt8Error as error:
                self.failures[entry.name] = str(error)
            self._moved()

    def load(self, stack: ExitStack) -> None:
        """Load in fresh processes, the last of which stay. Raises LLMInt8Error if nobody can."""
        for turn in range(self._loads):
            for entry in self._shuffled():
                with ExitStack() as until_loaded:
                    try:
                        path = str(self._paths[entry.name])
                        worker = until_loaded.enter_context(Worker(entry.name, path, self._threads))
                        answer = self._ask(worker, {})
                    except LLMInt8Error as error:
                        self.failures[entry.name] = str(error)
                    else:
                        self._load_seconds[entry.name].append(answer["seconds"])
                        self._load_peaks[entry.name] = answer["peak_bytes"]
                        if turn == self._loads - 1:
                            self._workers[entry.name] = worker
                            stack.enter_context(until_loaded.pop_all())
                self._moved()
        if not self._workers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())
            raise LLMInt8Error(f"no candidate can load the model ({reasons})")

    def take_turns(self, rows: list[list[int]], load: Workload, rounds: int, budget: float) -> None:
        """One workload: `rounds` runs of everyone who is in."""
        answers: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in self._in()}
        prompt, new = _WARM_UP
        for turn in range(rounds):
            for entry in self._shuffled():
                taken = answers[entry.name]
                spent = sum(answer["first_seconds"] + answer["further_seconds"] for answer in taken)
                if not taken or spent < budget:
                    try:
                        if turn == 0:
                            warm_up = [row[:prompt] for row in rows]
                            self._ask(self._workers[entry.name], {"rows": warm_up, "new_tokens": new})
                        request = {"rows": rows, "new_tokens": load.new_tokens}
                        taken.append(self._ask(self._workers[entry.name], request))
                    except LLMInt8Error as error:
                        self.failures[entry.name] = f"batch {load.batch}: {error}"
                self._moved()
        best = answers.get(FLOAT32)
        for name, cells in self._cells.items():
            failed = name in self.failures or not answers.get(name)
            cells.append(None if failed else _cell(answers[name], best[0] if best else None))

    def _shuffled(self) -> list[Entry]:
        order = self._in()
        self._shuffle(order)
        return order

    def _ask(self, worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
        time.sleep(_REST)
        return worker.ask(request)

    def results(self) -> list[Result]:
        """In the order of the candidates."""
        return [
            Result(
                entry.name,
                entry.form,
                statistics.median(seconds) if (seconds := self._load_seconds[entry.name]) else None,
                self._load_peaks.get(entry.name),
                self._cells[entry.name],
                self.failures.get(entry.name),
            )
            for entry in self._entries
        ]


def _cell(answers: list[dict[str, Any]], best: dict[str, Any] | None) -> Cell:
    same = None
    if best is not None:
        pairs = zip(answers[0]["tokens"], best["tokens"], strict=True)
        same = statistics.mean(_common_prefix(*pair) for pair in pairs)
    return Cell(
        statistics.median(answer["first_seconds"] for answer in answers),
        statistics.median(answer["further_seconds"] for answer in answers),
        len(answers),
        same,
        answers[-1]["peak_bytes"],
    )


def _common_prefix(ours: list[int], theirs: list[int]) -> int:
    pairs = zip(ours, theirs, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(ours))
