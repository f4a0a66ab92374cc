"""One fixture: the kernels of each instruction set that this machine has."""

import pytest

from llmint8.backends.library import find_library
from llmint8.backends.native import Native

ISAS = [isa for isa, had in Native().isas.items() if had] if find_library() is not None else []


@pytest.fixture(params=ISAS)
def native(request: pytest.FixtureRequest) -> Native:
    return Native(request.param)
