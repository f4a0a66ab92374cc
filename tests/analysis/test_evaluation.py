"""Scores against closed forms, and against torch's own cross entropy on a model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmint8.analysis import Score, evaluate, plan_windows
from llmint8.errors import InputError
from tiny import VOCABULARY, tiny_llama


def constant(*probabilities: float, dtype: torch.dtype = torch.float32):
    """A model that predicts the same distribution everywhere, whatever it reads."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log().to(dtype)
    return lambda ids: logits.expand(*ids.shape, -1)


def test_perplexity_is_that_of_torch_beyond_one_block_of_rows():
    model = tiny_llama()
    ids = torch.randint(0, VOCABULARY, (153,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        nll = [
            functional.cross_entropy(model(w[None]).logits[0, :-1].double(), w[1:], reduction="sum")
            for w in (ids[:70], ids[70:140], ids[140:])
        ]
        score = evaluate({"a": lambda i: model(i).logits}, ids, context=70)["a"]
    assert score.scored == 150
    assert score.perplexity == pytest.approx(math.exp(sum(map(float, nll)) / 150), rel=1e-12)
    assert score.kl is None
    assert score.top1 is None


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large():
    score = evaluate({"a": constant(*[1 / 5] * 5)}, torch.arange(5).repeat(30), context=64)["a"]
    assert score.perplexity == pytest.approx(5, rel=1e-6)


def test_divergence_runs_from_the_reference_to_the_model():
    models = {"float": constant(0.5, 0.25, 0.25), "int8": constant(0.25, 0.5, 0.25)}
    scores = evaluate(models, torch.zeros(100, dtype=torch.int64), 32, reference="float")
    assert scores["int8"].kl == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-6)
    assert scores["int8"].top1 == 0
    assert scores["float"].kl == 0
    assert scores["float"].top1 == 1
    asymmetric = {"float": constant(0.9, 0.1), "int8": constant(0.5, 0.5)}
    score = evaluate(asymmetric, torch.zeros(9, dtype=torch.int64), 32, reference="float")["int8"]
    assert score.kl == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-6)


def test_agreement_is_a_share_of_the_scored_positions():
    def follows(ids: Tensor) -> Tensor:
        return functional.one_hot(ids, 3).float()

    ids = torch.tensor([0, 0, 1, 0, 2])  # four scored positions, the reference prefers 0, the model 0 0 1 0
    scores = evaluate({"r": constant(0.6, 0.2, 0.2), "m": follows}, ids, 8, reference="r")
    assert scores["m"].top1 == 0.75


def test_logits_are_widened_before_the_softmax():
    probabilities = (0.5, 0.3, 0.2)
    logits = torch.tensor(probabilities, dtype=torch.float64).log().bfloat16().double()
    expected = -float(logits.log_softmax(0)[0])
    score = evaluate({"a": constant(*probabilities, dtype=torch.bfloat16)}, torch.zeros(5).long(), 8)["a"]
    assert math.log(score.perplexity) == pytest.approx(expected, rel=1e-12)


def test_the_reference_runs_once_a_window_and_progress_counts_them():
    calls, steps = [], []

    def reference(ids: Tensor) -> Tensor:
        calls.append(ids.shape[1])
        return constant(0.5, 0.5)(ids)

    models = {"a": constant(0.5, 0.5), "r": reference}
    evaluate(models, torch.zeros(10).long(), 4, "r", lambda done, total: steps.append((done, total)))
    assert calls == [4, 4, 2]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_bad_models_are_named():
    ids = torch.zeros(5).long()
    with pytest.raises(InputError, match="broken returned logits that are not finite"):
        evaluate({"broken": constant(math.nan, 0.5)}, ids, 8)
    with pytest.raises(InputError, match="small has a vocabulary of 2 tokens, the reference 3"):
        evaluate({"small": constant(0.5, 0.5), "r": constant(0.4, 0.3, 0.3)}, ids, 8, "r")
    with pytest.raises(InputError, match="'x' is none of the models a"):
        evaluate({"a": constant(0.5, 0.5)}, ids, 8, "x")


def last_logits(model, ids: Tensor) -> Tensor:
    """The distribution after a text, from that text alone."""
    return model(ids[None]).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize(("tokens", "context", "stride"), [(40, 12, 5), (33, 16, 16), (30, 9, 1), (7, 16, 3)])
def test_strided_windows_are_those_of_an_oracle_that_scores_token_by_token(tokens, context, stride):
    model, other = tiny_llama(), tiny_llama(seed=1)
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(5))
    nll, kl, agreed, scored = 0.0, 0.0, 0, set()
    with torch.no_grad():
        for start in range(0, tokens, stride):
            for token in range(start + 1, min(start + context, tokens)):
                if token in scored:
                    continue
                scored.add(token)
                log_p, log_r = (last_logits(m, ids[start:token]) for m in (model, other))
                nll -= float(log_p[ids[token]])
                kl += float((log_r.exp() * (log_r - log_p)).sum())
                agreed += int(log_p.argmax() == log_r.argmax())
        models = {"model": lambda i: model(i).logits, "other": lambda i: other(i).logits}
        score = evaluate(models, ids, context, "other", stride=stride)["model"]
    assert score.scored == len(scored)
    assert score.nll == pytest.approx(nll, rel=1e-6)
    assert score.kl == pytest.approx(kl / len(scored), rel=1e-5)
    assert score.top1 == agreed / len(scored)


def test_every_token_weighs_the_same_whatever_its_window():
    """The mean of the windows' means, a common mistake, would be 1.5 times as large a loss here."""

    def surprised_by_one(ids: Tensor) -> Tensor:
        return torch.tensor([0.75, 0.25]).log().expand(*ids.shape, -1)

    ids = torch.tensor([0] * 8 + [0, 1])  # windows of 8 and 2 tokens, 7 and 1 of which are scored
    score = evaluate({"a": surprised_by_one}, ids, context=8)["a"]
    assert score.nll == pytest.approx(-7 * math.log(0.75) - math.log(0.25), rel=1e-6)
    assert math.log(score.perplexity) == pytest.approx(score.nll / 8, rel=1e-12)


@pytest.mark.parametrize("stride", [None, 4, 9])
def test_results_do_not_depend_on_the_batch_size(stride):
    """To the last bit, where the model's own logits do not."""
    table = torch.randn((VOCABULARY, VOCABULARY), generator=torch.Generator().manual_seed(1))
    models = {"a": lambda ids: table[ids], "b": lambda ids: table[ids] * 1.25}
    ids = torch.randint(0, VOCABULARY, (101,), generator=torch.Generator().manual_seed(2))
    counts = torch.arange(101)
    seen = []

    def scores(size: int) -> dict[str, Score]:
        options = {"stride": stride, "batch_size": size, "token_bytes": counts}
        return evaluate(models, ids, 10, "b", lambda done, total: seen.append((done, total)), **options)

    one = scores(1)
    windows = len(plan_windows(101, 10, stride))
    for size in (2, 3, 64):
        assert scores(size) == one
        assert seen[-1] == (windows, windows)


def test_batches_hold_as_many_windows_as_asked_for_and_of_one_length():
    shapes = []

    def model(ids: Tensor) -> Tensor:
        shapes.append(tuple(ids.shape))
        return constant(0.5, 0.5)(ids)

    evaluate({"a": model}, torch.zeros(43).long(), 10, batch_size=3)
    assert shapes == [(3, 10), (1, 10), (1, 3)]


def test_bytes_are_those_of_the_scored_tokens():
    ids, counts = torch.arange(6) % 4, torch.tensor([100, 1, 2, 100, 3, 0])
    score = evaluate({"a": constant(*[0.25] * 4)}, ids, 3, token_bytes=counts)["a"]
    assert score.scored_bytes == 1 + 2 + 3 + 0
    assert score.bits_per_byte == pytest.approx(2 * 4 / 6, rel=1e-6)
    assert score.byte_perplexity == pytest.approx(2 ** (2 * 4 / 6), rel=1e-6)
    unknown = evaluate({"a": constant(*[0.25] * 4)}, ids, 3)["a"]
    assert unknown.scored_bytes is unknown.bits_per_byte is unknown.byte_perplexity is None


def test_bad_sizes_are_named():
    with pytest.raises(InputError, match="batch size must be at least 1, got 0"):
        evaluate({"a": constant(0.5, 0.5)}, torch.zeros(5).long(), 8, batch_size=0)
    with pytest.raises(InputError, match=r"one count for each token, \[5\], got \[4\]"):
        evaluate({"a": constant(0.5, 0.5)}, torch.zeros(5).long(), 8, token_bytes=torch.zeros(4).long())
