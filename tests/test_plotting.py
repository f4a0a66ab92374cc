"""A picture without matplotlib is an error with its remedy."""

import sys

import pytest

from llmint8 import LLMInt8Error
from llmint8.plotting import require_matplotlib


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(LLMInt8Error, match=r"pip install 'llmint8\[plot\]'"):
        require_matplotlib()
