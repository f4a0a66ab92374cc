"""One model as the reports show it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from llmint8.analysis.outliers import OutlierReport


@dataclass(frozen=True)
class ModelOutliers:
    """name: what its user calls it. parameters: how many it has. perplexity: on the same text, per token."""

    name: str
    parameters: int
    perplexity: float
    report: OutlierReport

    @property
    def label(self) -> str:
        """The last part of a path."""
        return re.split(r"[/\\]", self.name.rstrip("/\\"))[-1] or self.name

    @property
    def layers_share(self) -> float:
        """Share of the layers that the most common outlier dimension reaches; 0 if there is none."""
        return self.report.widest.layers if self.report.widest else 0.0

    @property
    def positions_share(self) -> float:
        """Share of the positions that it reaches."""
        return self.report.widest.positions if self.report.widest else 0.0

    @property
    def largest(self) -> float:
        """The largest magnitude of all inputs."""
        return max(layer.largest for layer in self.report.layers)

    def block_label(self, block: str | None) -> str:
        """A block as a number, where the model has one stack of them."""
        stacks = {name.rpartition(".")[0] for name in self.report.blocks}
        return (block or "").rpartition(".")[2] if len(stacks) == 1 else block or ""

    @property
    def mostly_outliers(self) -> dict[str, str]:
        """Projections of layers in which most columns are outliers, to their blocks: "3, 7 to 12"."""
        blocks: dict[str, list[str]] = {}
        for layer in self.report.mostly_outliers:
            blocks.setdefault(layer.projection, []).append(self.block_label(layer.block))
        return {projection: _runs(list(dict.fromkeys(names))) for projection, names in blocks.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "perplexity": self.perplexity,
            **self.report.to_dict(),
        }


def _runs(labels: list[str]) -> str:
    """Labels, with three or more consecutive numbers as a range."""
    runs: list[list[str]] = []
    for label in labels:
        follows = runs and label.isdigit() and runs[-1][-1].isdigit() and int(label) == int(runs[-1][-1]) + 1
        if follows:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


def percent(share: float) -> str:
    """Two significant digits: 15 %, 0.31 %, 0 %."""
    return f"{float(f'{share * 100:.2g}'):.6g} %"


def number(value: float) -> str:
    """Three significant digits, or whole: 5.71, 31.2, 2,925."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def parameters(count: int) -> str:
    """As papers write it: 135M, 6.7B."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)
