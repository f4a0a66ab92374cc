"""Where no kernels are in use there is no fast path to test."""

import pytest

from llmint8.backends.native import engine


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if engine() is None:
        pytest.skip("no kernels are in use")
