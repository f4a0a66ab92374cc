"""Turns: who runs how often, what is timed, and whose errors are remarks."""

from __future__ import annotations

import pytest

from llmint8.bench import timing
from llmint8.bench.timing import Candidate, copies, rotate, take_turns


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told to."""

    class Clock:
        now = 0.0

        def costs(self, seconds):
            """A call that takes so long; given several, one after the other."""
            calls = rotate(seconds)

            def call():
                self.now += calls()

            return call

    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


def candidate(call):
    return Candidate(lambda: call)


def test_the_median_counts_and_the_warm_up_does_not(clock):
    costs = candidate(clock.costs([100.0, 3.0, 1.0, 2.0]))
    assert take_turns({"a": costs}, rounds=3, budget=1e9) == ({"a": 2.0}, {})


def test_what_prepares_a_call_is_not_timed(clock):
    slow = clock.costs([7.0])

    def prepare():
        slow()
        return clock.costs([1.0])

    assert take_turns({"a": Candidate(prepare)}, rounds=3, budget=1e9)[0] == {"a": 1.0}


def test_all_take_turns_and_a_slow_one_sits_out_after_three(clock):
    ran = []

    def counted(name, seconds):
        run = clock.costs([seconds])
        return candidate(lambda: (ran.append(name), run()))

    take_turns({"slow": counted("slow", 2.0), "fast": counted("fast", 0.25)}, rounds=9, budget=3.0)
    assert ran[:2] == ["slow", "fast"]  # the warm-up
    assert [sorted(ran[i : i + 2]) for i in (2, 4, 6)] == [["fast", "slow"]] * 3
    assert ran[8:] == ["fast"] * 6


def test_another_librarys_error_is_a_remark():
    def fails():
        raise NotImplementedError("no such shape\nand much more")

    seconds, failures = take_turns(
        {"peer": Candidate(lambda: fails, may_fail=True), "ours": candidate(int)}, rounds=3, budget=1.0
    )
    assert seconds.keys() == {"ours"}
    assert failures == {"peer": "NotImplementedError: no such shape"}


def test_an_error_of_ours_ends_the_measurement():
    def fails():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        take_turns({"ours": candidate(fails)}, rounds=3, budget=1.0)


def test_weights_rotate_past_the_caches():
    assert [*map(lambda turn: turn(), [rotate("ab")] * 3)] == ["a", "b", "a"]  # noqa: C417
    assert copies(1 << 20) == 64
    assert copies(16 << 20) == 8
    assert copies(16 << 20, beyond=40 << 20) == 3
    assert copies(1 << 40) == 2
    assert copies(0) == 64
