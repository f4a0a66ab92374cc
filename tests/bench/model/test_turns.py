"""Whose turn it is, what is counted, and who drops out: with workers that only pretend."""

from __future__ import annotations

from typing import ClassVar

import pytest

from llmint8.bench.model import Workload, run_model_benchmark, turns
from llmint8.bench.model.entries import FLOAT32, Entry
from llmint8.errors import InputError, LLMInt8Error

LOADS = [Workload(1, 4, 3), Workload(2, 4, 3)]
IDS = list(range(20))


class Pretender:
    """Instead of a process: answers by a plan, and writes down what it is asked."""

    log: ClassVar[list] = []
    plans: ClassVar[dict] = {}
    alive: ClassVar[set] = set()

    def __init__(self, name, path, threads):
        self.name, self.calls = name, 0
        self.log.append((name, "start", path, threads))
        self.alive.add(self)
        if self.plans.get(name) == "no start":
            self.close()
            raise LLMInt8Error("ImportError: something is missing")

    def ask(self, request):
        plan = self.plans.get(self.name, {})
        if "rows" not in request:
            self.log.append((self.name, "load"))
            return {"seconds": len(self.log), "peak_bytes": 7}
        self.calls += 1
        self.log.append((self.name, len(request["rows"]), len(request["rows"][0]), request["new_tokens"]))
        if self.calls == plan.get("fails at"):
            raise LLMInt8Error("out of luck")
        tokens = [plan.get("tokens", [1, 2, 3]) for _ in request["rows"]]
        seconds = plan.get("seconds", 1.0) * self.calls
        return {"first_seconds": seconds, "further_seconds": seconds / 2, "tokens": tokens,
                "peak_bytes": 100 * self.calls}  # fmt: skip

    def close(self):
        self.alive.discard(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Forms:
    def __init__(self, folder, work):
        self.work = work

    def path(self, form):
        if form == "gguf":
            raise LLMInt8Error("no such form of this model")
        return self.work / form


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(turns, "Worker", Pretender)
    monkeypatch.setattr(turns, "Forms", Forms)
    monkeypatch.setattr(turns, "_REST", 0)
    monkeypatch.setattr(Pretender, "log", [])
    monkeypatch.setattr(Pretender, "plans", {})
    monkeypatch.setattr(Pretender, "alive", set())
    (tmp_path / "some-model").mkdir()

    def call(entries, plans, rounds=4, budget=1e9, workloads=LOADS, step=lambda *_: None):
        Pretender.plans.update(plans)
        found = run_model_benchmark(tmp_path / "some-model", IDS, workloads, rounds, budget, 3, step, entries)
        assert Pretender.alive == set()
        return found

    return call


def entry(name, form="float32", package="transformers"):
    return Entry(name, form, None, package)


BOTH = (entry(FLOAT32), entry("other", "int8"))


def test_everyone_runs_every_workload_and_medians_are_kept(run):
    steps = []
    found = run(BOTH, {"other": {"seconds": 10.0}}, step=lambda *s: steps.append(s))
    assert found.model == "some-model"
    assert found.environment["threads"] == 3
    # Call 1 and call 6 are the warm-ups, so the counted ones of batch 1 are 2 to 5, of batch 8 7 to 10.
    cells = found.results[1].cells
    assert [cell.first_seconds for cell in cells] == [35.0, 85.0]
    assert [cell.further_seconds for cell in cells] == [17.5, 42.5]
    assert [cell.peak_bytes for cell in cells] == [500, 1000]
    assert [cell.runs for cell in cells] == [4, 4]
    assert found.prompt_rate(found.results[1], 1) == 2 * 4 / 85
    assert found.new_rate(found.results[1], 1) == 2 * 2 / 42.5
    total = 2 * (1 + 3 + 8)
    assert steps == [(done, total) for done in range(1, total + 1)]


def test_processes_are_fresh_for_each_load_and_the_last_one_stays(run):
    found = run(BOTH, {})
    assert [what[0] for what in Pretender.log if what[1] == "start"].count("other") == 3
    seconds = [i for i, what in enumerate(Pretender.log, 1) if what == ("other", "load")]
    assert found.results[1].load_seconds == sorted(seconds)[1]
    assert found.results[1].load_peak_bytes == 7
    assert all(what[3] == 3 for what in Pretender.log if what[1] == "start")


def test_one_warm_up_then_whole_runs_in_turn(run):
    run(BOTH, {}, workloads=[Workload(2, 12, 3)])
    calls = [what for what in Pretender.log if len(what) == 4 and what[1] != "start"]
    assert sorted(calls[:2]) == [(calls[0][0], 2, 8, 2), (calls[0][0], 2, 12, 3)]
    for turn in range(1, 4):
        pair = calls[2 + 2 * turn : 4 + 2 * turn]
        assert {name for name, *_ in pair} == {FLOAT32, "other"}
        assert all(rest == [2, 12, 3] for _, *rest in pair)


def test_who_has_used_the_budget_sits_out(run):
    found = run(BOTH, {"other": {"seconds": 10.0}}, budget=31.0, workloads=LOADS[:1])
    assert [result.cells[0].runs for result in found.results] == [4, 2]


def test_tokens_are_compared_with_those_of_float32(run):
    found = run(BOTH, {"other": {"tokens": [1, 2, 9]}})
    assert [[cell.same_tokens for cell in result.cells] for result in found.results] == [[3, 3], [2, 2]]
    alone = run(BOTH[1:], {})
    assert [cell.same_tokens for cell in alone.results[0].cells] == [None, None]


def test_absent_unfit_and_failing_candidates_have_their_reasons(run):
    entries = (
        *BOTH,
        entry("not here", package="no-such-package"),
        entry("no form", "gguf"),
        entry("no start"),
        entry("stumbles"),
    )
    found = run(entries, {"no start": "no start", "stumbles": {"fails at": 8}})
    results = {result.name: result for result in found.results}
    assert [result.name for result in found.results] == [entry.name for entry in entries]
    assert results["not here"].failure == "no-such-package is not installed"
    assert results["no form"].failure == "no such form of this model"
    assert results["no start"].failure == "ImportError: something is missing"
    assert results["stumbles"].failure == "batch 2: out of luck"
    assert [cell is None for cell in results["stumbles"].cells] == [False, True]
    assert all(results[name].cells == [None, None] for name in ("not here", "no form", "no start"))
    assert results["not here"].load_seconds is None
    assert all(results[name].failure is None for name in (FLOAT32, "other"))


def test_nobody_left_is_an_error_with_all_reasons(run):
    with pytest.raises(LLMInt8Error, match=r"no candidate can load the model .*something is missing"):
        run((entry("no start"), entry("no form", "gguf")), {"no start": "no start"})


def test_a_text_shorter_than_a_prompt_is_refused(run):
    with pytest.raises(InputError, match="holds 20 tokens, fewer than the 21 of a prompt"):
        run(BOTH, {}, workloads=[Workload(1, 21, 3)])


@pytest.mark.parametrize(
    ("batch", "length", "starts"),
    [(1, 5, [0]), (3, 5, [0, 5, 10]), (4, 8, [0, 4, 8, 12]), (3, 20, [0, 0, 0])],
)
def test_prompts_are_spread_over_the_text(batch, length, starts):
    rows = turns.cut_prompts(IDS, Workload(batch, length, 2))
    assert rows == [list(range(start, start + length)) for start in starts]
