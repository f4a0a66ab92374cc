"""Errors of metrics and of their differences, against formulas and against resampling."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from llmint8.errors import InputError
from llmint8.integrations.task_results import Metric, compare_metrics, influences_of, mean_stderr

LIKELIHOODS = [-1.5, -0.25, -3.0, -2.0, -0.75]
PAIRS = [(-12.0, 5), (-3.5, 2), (-20.0, 9), (-7.0, 2)]


def perplexity(values):
    return math.exp(-statistics.fmean(values))


def by_weight(pairs):
    return math.exp(-sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs))


def bits(pairs):
    return math.log2(by_weight(pairs))


def metric(values, task="t", name="acc", stderr=None, documents=None):
    return Metric(task, name, statistics.fmean(values), stderr, documents or len(values), True, tuple(values))


def test_error_of_a_mean():
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert mean_stderr(values) == pytest.approx(statistics.stdev(values) / math.sqrt(5), rel=1e-12)
    assert mean_stderr([1.0]) is None
    assert mean_stderr([2.0, 2.0]) == 0


def test_influences_of_a_mean_are_its_outcomes():
    assert influences_of(0.5, [True, False, 1, 0]) == (1.0, 0.0, 1.0, 0.0)
    assert influences_of(0.0, [0.0, 0.0]) == (0.0, 0.0)


@pytest.mark.parametrize("function", [by_weight, bits])
@pytest.mark.parametrize("outcomes", [LIKELIHOODS, PAIRS])
def test_influences_are_the_derivative_by_the_weight_of_a_document(function, outcomes):
    """Many copies of all documents, and one more of a document: the value moves by its influence / all."""
    pairs = [o if isinstance(o, tuple) else (o, 1) for o in outcomes]
    value, copies = function(pairs), 100_000
    influences = influences_of(value, outcomes)
    assert len(influences) == len(outcomes)
    for pair, influence in zip(pairs, influences, strict=True):
        likelihood, weight = (sum(p[k] for p in pairs) * copies + pair[k] for k in (0, 1))
        moved = function([(likelihood, weight)])
        assert (moved - value) * copies * len(pairs) == pytest.approx(influence, rel=1e-3)


def test_error_of_a_perplexity_is_that_of_resampling():
    draw = random.Random(0)
    outcomes = [draw.gauss(-2, 0.5) for _ in range(400)]
    stderr = mean_stderr(influences_of(perplexity(outcomes), outcomes))
    resampled = [perplexity(draw.choices(outcomes, k=400)) for _ in range(400)]
    assert stderr == pytest.approx(statistics.stdev(resampled), rel=0.15)


@pytest.mark.parametrize(
    ("value", "outcomes"), [(0.3, []), (0.3, [1.0, 0.0]), (0.3, ["a", "b"]), (0.3, [(1, 2, 3)]), (7.0, PAIRS)]
)
def test_other_metrics_have_no_influences(value, outcomes):
    assert influences_of(value, outcomes) == ()


def test_differences_are_taken_document_by_document():
    int8, original = metric([1, 0, 1, 0, 0, 0]), metric([1, 0, 1, 1, 0, 0])
    (difference,) = compare_metrics([int8], [original])
    assert difference.value == pytest.approx(-1 / 6)
    assert difference.paired
    assert difference.stderr == pytest.approx(mean_stderr([0, 0, 0, -1, 0, 0]))
    assert difference.within
    (same,) = compare_metrics([original], [original])
    assert (same.value, same.stderr, same.within) == (0, 0, True)


def test_a_small_difference_in_every_document_is_no_chance():
    base = [0.1 * i for i in range(10)]
    (difference,) = compare_metrics([metric([v + 0.01 + 1e-4 * v for v in base])], [metric(base)])
    assert difference.within is False


def test_without_documents_both_errors_count():
    int8, original = Metric("g", "acc", 0.5, 0.03, 9), Metric("g", "acc", 0.6, 0.04, 9)
    (difference,) = compare_metrics([int8], [original])
    assert difference.stderr == pytest.approx(0.05)
    assert not difference.paired
    assert difference.within is False
    (unknown,) = compare_metrics([Metric("g", "acc", 0.5, None, 9)], [original])
    assert unknown.stderr is unknown.within is None


def test_results_of_other_tasks_or_documents_are_refused():
    for other in (metric([1, 0, 0]), metric([1, 0], task="u"), metric([1, 0], name="f1")):
        with pytest.raises(InputError, match="the same tasks on the same documents"):
            compare_metrics([metric([1, 0])], [other])
