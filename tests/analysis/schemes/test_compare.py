"""Schemes side by side: the scores of `evaluate`, shares, bytes, and layers full of outliers."""

from __future__ import annotations

import pytest
import torch

from llmint8.analysis import evaluate
from llmint8.analysis.schemes import applied, compare_schemes, schemes_named
from llmint8.convert import plan_conversion
from llmint8.errors import InputError
from tiny import tiny_llama

IDS = torch.arange(64) * 7 % 256


def setting():
    model = tiny_llama()

    def logits(ids):
        with torch.no_grad():
            return model(ids, use_cache=False).logits

    return model, plan_conversion(model, None).convert, logits


def test_scores_shares_and_bytes():
    model, names, logits = setting()
    schemes = schemes_named(["float", "absmax", "llm-int8", "llmint8-auto"])
    steps = []
    results = compare_schemes(model, names, schemes, logits, IDS, 32, lambda *step: steps.append(step))
    assert steps == [(i, 8) for i in range(1, 9)]
    plain, absmax, paper, auto = results

    def emulated(ids):
        with applied(model, names, schemes[3]):
            return logits(ids)

    assert auto.score == evaluate({"float": logits, "auto": emulated}, IDS, 32, "float")["auto"]
    assert (plain.score.kl, plain.score.top1, plain.kept_values, plain.kept_columns) == (0, 1, 1, 1)
    assert (absmax.kept_values, absmax.kept_columns) == (0, 0)
    assert 0 < auto.kept_values < auto.kept_columns < 1
    assert paper.kept_values == paper.kept_columns
    linears = [model.get_submodule(name) for name in names]
    assert plain.weight_bytes == sum(linear.weight.numel() * 4 for linear in linears)
    assert auto.weight_bytes == sum(linear.weight.numel() + 4 * linear.out_features for linear in linears)
    both = sum(
        2 * linear.out_features * paper.usage[name].columns_ever
        for name, linear in zip(names, linears, strict=True)
    )
    assert paper.weight_bytes == auto.weight_bytes + both


def test_a_layer_full_of_outliers_is_named():
    model, names, logits = setting()
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight.mul_(1000)
    results = compare_schemes(
        model, names, schemes_named(["float", "llm-int8", "llmint8-6"]), logits, IDS, 32
    )
    for result in results[1:]:
        assert next(iter(result.crowded())) == name
        assert result.crowded()[name] == 1
    assert results[0].crowded() == {}


def test_without_float_the_others_are_still_compared_with_it():
    model, names, logits = setting()
    (alone,) = compare_schemes(model, names, schemes_named(["absmax"]), logits, IDS, 32)
    assert alone.score.kl > 0


def test_nothing_to_compare_is_refused():
    model, names, logits = setting()
    for given in ((names, []), ((), schemes_named(["absmax"]))):
        with pytest.raises(InputError, match="at least one scheme and one layer"):
            compare_schemes(model, *given, logits, IDS, 32)
