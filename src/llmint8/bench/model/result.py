"""What a run found: for each candidate its loading and each workload, with the ratios that follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Workload:
    """Prompts of one length, continued greedily. batch: rows. new_tokens: of each, at least 2."""

    batch: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Cell:
    """One candidate on one workload.

    first_seconds: median until the first new token. further_seconds: median for the others. runs: how many.
    same_tokens: how many new tokens of a row, in the mean, come before the first that differs from float32's;
    None without float32. peak_bytes: the most its process has held so far beyond its libraries, loading
    included; None where the system does not tell.
    """

    first_seconds: float
    further_seconds: float
    runs: int
    same_tokens: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Result:
    """One candidate. form: what it loaded. load_seconds: median of fresh processes; None if it did not load.

    cells: in the order of the workloads; None where it did not run. failure: why something is missing.
    """

    name: str
    form: str
    load_seconds: float | None = None
    load_peak_bytes: int | None = None
    cells: list[Cell | None] = field(default_factory=list)
    failure: str | None = None


@dataclass(frozen=True)
class ModelBenchmark:
    """All results; environment: what a reader needs to repeat them."""

    environment: dict[str, Any]
    model: str
    workloads: list[Workload]
    results: list[Result]

    def cell(self, result: Result, workload: int) -> Cell | None:
        """The cell of a workload by its index."""
        return result.cells[workload] if result.cells else None

    def prompt_rate(self, result: Result, workload: int) -> float | None:
        """Prompt tokens per second, of all rows."""
        cell, load = self.cell(result, workload), self.workloads[workload]
        return load.batch * load.prompt_tokens / cell.first_seconds if cell else None

    def new_rate(self, result: Result, workload: int) -> float | None:
        """New tokens per second after the first, of all rows."""
        cell, load = self.cell(result, workload), self.workloads[workload]
        return load.batch * (load.new_tokens - 1) / cell.further_seconds if cell else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; times in seconds, sizes in bytes, rates in tokens per second."""
        found = asdict(self)
        for result, entry in zip(self.results, found["results"], strict=True):
            for index, cell in enumerate(entry["cells"]):
                if cell is not None:
                    cell["prompt_tokens_per_second"] = self.prompt_rate(result, index)
                    cell["new_tokens_per_second"] = self.new_rate(result, index)
        return found
