"""Scores against closed forms, and against torch's own cross entropy on a model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmint8.analysis import evaluate, split_windows
from llmint8.errors import InputError
from tiny import VOCABULARY, tiny_llama


def constant(*probabilities: float, dtype: torch.dtype = torch.float32):
    """A model that predicts the same distribution everywhere, whatever it reads."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log().to(dtype)
    return lambda ids: logits.expand(1, ids.shape[1], -1)


@pytest.mark.parametrize(("tokens", "context", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (3, 8, [3])])
def test_windows_share_no_token_and_a_single_one_left_over_is_dropped(tokens, context, sizes):
    windows = split_windows(torch.arange(tokens), context)
    assert [w.shape for w in windows] == [(1, size) for size in sizes]
    assert torch.cat(windows, 1)[0].tolist() == list(range(sum(sizes)))


@pytest.mark.parametrize("ids", [torch.arange(1), torch.zeros((2, 5), dtype=torch.int64)])
def test_windows_need_a_row_of_two_tokens(ids):
    with pytest.raises(InputError, match="at least 2 tokens"):
        split_windows(ids, 4)


def test_windows_need_a_context_of_two():
    with pytest.raises(InputError, match="at least 2 tokens, got 1"):
        split_windows(torch.arange(5), 1)


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
