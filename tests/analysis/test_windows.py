"""Windows against a list of which token is read and scored where."""

from __future__ import annotations

import pytest
import torch

from llmint8.analysis import plan_windows, split_windows
from llmint8.analysis.token_bytes import token_bytes
from llmint8.errors import InputError


@pytest.mark.parametrize(("tokens", "context", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (3, 8, [3])])
def test_windows_share_no_token_and_a_single_one_left_over_is_dropped(tokens, context, sizes):
    windows = split_windows(torch.arange(tokens), context)
    assert [w.shape for w in windows] == [(1, size) for size in sizes]
    assert torch.cat(windows, 1)[0].tolist() == list(range(sum(sizes)))


def test_strided_windows_by_hand():
    windows = [(w.start, w.stop, w.first) for w in plan_windows(10, 4, 3)]
    assert windows == [(0, 4, 1), (3, 7, 4), (6, 10, 7)]
    # The last window is shorter where the text ends: as short as the stride leaves it.
    assert [(w.start, w.stop, w.first) for w in plan_windows(9, 4, 3)] == [(0, 4, 1), (3, 7, 4), (6, 9, 7)]
    assert [(w.start, w.stop, w.first) for w in plan_windows(5, 8, 2)] == [(0, 5, 1)]


@pytest.mark.parametrize("context", [2, 3, 7, 8, 9])
@pytest.mark.parametrize("tokens", [2, 3, 15, 16, 17, 31, 33])
def test_each_token_is_scored_once_from_as_much_as_the_stride_promises(tokens, context):
    for stride in range(1, context + 1):
        windows = plan_windows(tokens, context, stride)
        scored = [token for w in windows for token in range(w.first, w.stop)]
        unscored = {0} if stride < context else set(range(0, tokens, context))
        assert scored == sorted(set(range(tokens)) - unscored)
        for window in windows:
            assert 0 < window.stop - window.start <= context
            assert window.scored == window.stop - window.first > 0
            if window.start:
                assert window.first - window.start == max(context - stride, 1)


def test_no_stride_is_a_stride_of_the_context():
    assert plan_windows(100, 7) == plan_windows(100, 7, 7)


@pytest.mark.parametrize("ids", [torch.arange(1), torch.zeros((2, 5), dtype=torch.int64)])
def test_windows_need_a_row_of_two_tokens(ids):
    with pytest.raises(InputError, match="at least 2 tokens"):
        split_windows(ids, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 1), "context must be at least 2 tokens, got 1"),
        ((1, 4), "needs at least 2 tokens, got 1"),
        ((5, 4, 5), "stride must be from 1 to the context of 4 tokens, got 5"),
        ((5, 4, 0), "stride must be from 1 to the context of 4 tokens, got 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        plan_windows(*arguments)


def test_bytes_of_tokens_hold_the_blanks_before_them_and_characters_that_are_shared():
    text = "ab  é日 x "
    #     special, "ab", " " + " é" without its blanks, 日 in two tokens, x; the last blank has no token
    offsets = [(0, 0), (0, 2), (4, 5), (5, 6), (5, 6), (7, 8), (0, 0)]
    counts = token_bytes(text, offsets)
    assert counts.tolist() == [0, 2, 4, 3, 0, 2, 0]
    assert counts.dtype == torch.int64
    assert int(counts.sum()) == len(text[:-1].encode())
    assert token_bytes("", []).tolist() == []
