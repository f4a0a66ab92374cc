"""What tasks gave: a value with its standard error for each metric, and how far two models are apart.

Two models that answer the same documents are compared document by document. Most documents are hard or easy
for both, so the error of the mean difference is far smaller than the errors of the two means suggest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmint8.errors import InputError

#: Two values are within the errors if they are at most this many standard errors of their difference apart:
#: 95 % of all differences that chance alone makes, if these are normal.
TWO_SIDED_95 = 1.96
#: Relative difference below which two ways to sum gave the same number.
_SAME = 1e-9


@dataclass(frozen=True)
class Metric:
    """One number that a task gave.

    name: the metric, with lm-eval's filter of the answers in brackets if there is one.
    stderr: standard error of value. None if lm-eval knows none.
    documents: how many were answered.
    higher_is_better: None if the task does not say.
    influences: by document, how much it moved the value: the value is their mean, but for a constant. Empty
        for metrics that are no mean of documents.
    """

    task: str
    name: str
    value: float
    stderr: float | None
    documents: int
    higher_is_better: bool | None = None
    influences: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Difference:
    """How far a metric is from that of another model on the same documents: value, model minus reference.

    stderr: of the difference. paired: taken document by document, otherwise from both errors as if the
    models had met different documents, which is too large. None if an error is not known.
    """

    metric: Metric
    reference: Metric
    value: float
    stderr: float | None
    paired: bool

    @property
    def within(self) -> bool | None:
        """Whether chance explains it: at most 1.96 standard errors. None if there is no standard error."""
        return None if self.stderr is None else abs(self.value) <= TWO_SIDED_95 * self.stderr


def mean_stderr(values: Iterable[float]) -> float | None:
    """Standard error of a mean: sample deviation / sqrt(n). None for fewer than two values."""
    values = list(values)
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def influences_of(value: float, outcomes: Sequence[Any]) -> tuple[float, ...]:
    """By document, how much it moved a metric (the delta method), from the outcomes and the value they gave.

    Known are means; exp(-mean), the perplexity of log-likelihoods; and the ratios of pairs (log-likelihood,
    weight): exp(-Σ l / Σ w), perplexity by word or byte, and -Σ l / (Σ w · ln 2), bits per byte. Empty for
    anything else.
    """
    if not outcomes:
        return ()
    if all(isinstance(outcome, (bool, int, float)) for outcome in outcomes):
        mean = math.fsum(outcomes) / len(outcomes)
        if math.isclose(value, mean, rel_tol=_SAME, abs_tol=_SAME):
            return tuple(map(float, outcomes))
        pairs = [(float(outcome), 1.0) for outcome in outcomes]
    elif all(isinstance(outcome, (tuple, list)) and len(outcome) == 2 for outcome in outcomes):
        pairs = [(float(likelihood), float(weight)) for likelihood, weight in outcomes]
    else:
        return ()
    weight = math.fsum(w for _, w in pairs) / len(pairs)
    rate = math.fsum(likelihood for likelihood, _ in pairs) / len(pairs) / weight
    if value > 0 and math.isclose(math.log(value), -rate, rel_tol=_SAME, abs_tol=_SAME):
        slope = -value
    elif math.isclose(value * math.log(2), -rate, rel_tol=_SAME):
        slope = -1 / math.log(2)
    else:
        return ()
    return tuple(slope * (likelihood - rate * w) / weight for likelihood, w in pairs)


def compare_metrics(metrics: Iterable[Metric], references: Iterable[Metric]) -> list[Difference]:
    """Each metric against the one of the same task and name.

    Raises InputError if the two were not made by the same tasks on as many documents.
    """
    metrics = list(metrics)
    known = {(metric.task, metric.name): metric for metric in references}
    if {(metric.task, metric.name): metric.documents for metric in metrics} != {
        key: metric.documents for key, metric in known.items()
    }:
        raise InputError("results can be compared if both models did the same tasks on the same documents")
    return [_difference(metric, known[metric.task, metric.name]) for metric in metrics]


def _difference(metric: Metric, reference: Metric) -> Difference:
    value = metric.value - reference.value
    if metric.influences and reference.influences:
        pairs = zip(metric.influences, reference.influences, strict=True)
        return Difference(metric, reference, value, mean_stderr(a - b for a, b in pairs), paired=True)
    known = metric.stderr is not None and reference.stderr is not None
    stderr = math.hypot(metric.stderr or 0.0, reference.stderr or 0.0) if known else None
    return Difference(metric, reference, value, stderr, paired=False)
