"""The schemes by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmint8.analysis.schemes.calibration import ColumnStatistics
from llmint8.analysis.schemes.contract import Contract, SecondDigit
from llmint8.analysis.schemes.decomposition import BitsAndBytes, Decomposed
from llmint8.analysis.schemes.rounding import absmax, zeropoint
from llmint8.analysis.schemes.scheme import Scheme
from llmint8.analysis.schemes.smoothquant import SmoothQuant
from llmint8.analysis.schemes.uniform import Float, Uniform, WeightOnly
from llmint8.errors import ConfigError
from llmint8.numerics import DEFAULT_THRESHOLD

_TENSOR = "one large value anywhere in the batch makes all others coarse"
_ROW = "one large value makes its row coarse, and the largest weight the whole weight"
_VECTOR = "one large value makes its row coarse"
_SHARED = "a row depends on its batch; one large value keeps a whole column, and its weights twice"

#: All that need no calibration; in the order of the paper's Table 1, then others, then ours.
FIXED: tuple[Scheme, ...] = (
    Float(),
    Uniform("absmax", "int8 absmax", _TENSOR, absmax, by_token=False, by_output=False),
    Uniform("zeropoint", "int8 zeropoint", _TENSOR, zeropoint, by_token=False, by_output=False),
    Uniform("absmax-row", "absmax row-wise", _ROW, absmax, by_token=True, by_output=False),
    Uniform("absmax-vector", "absmax vector-wise", _VECTOR, absmax, by_token=True, by_output=True),
    Uniform("zeropoint-vector", "zeropoint vector-wise", _VECTOR, zeropoint, by_token=True, by_output=True),
    Decomposed("absmax-row-decomposed", "absmax row-wise + decomposition", _SHARED, absmax, by_output=False),
    Decomposed("llm-int8", "LLM.int8(), absmax + decomposition", _SHARED, absmax, by_output=True),
    Decomposed(
        "llm-int8-zeropoint", "LLM.int8(), zeropoint + decomposition", _SHARED, zeropoint, by_output=True
    ),
    BitsAndBytes(),
    WeightOnly(),
    Contract(0.0),
    Contract(DEFAULT_THRESHOLD),
    Contract("auto"),
)
#: Every name, in the order of a table.
NAMES: tuple[str, ...] = (
    *(s.name for s in FIXED if not isinstance(s, Contract)),
    SmoothQuant.name,
    *(s.name for s in FIXED if isinstance(s, Contract)),
    SecondDigit.name,
)
#: Those that a calibration text is needed for.
CALIBRATED = (SmoothQuant, SecondDigit)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The same names in the order of a table. Raises ConfigError for one that no scheme has, or for none."""
    wanted = tuple(names)
    for name in wanted:
        if name not in NAMES:
            raise ConfigError(f"{name!r} is no scheme; there are {', '.join(NAMES)}")
    if not wanted:
        raise ConfigError(f"no scheme is named; there are {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in wanted)


def needs_calibration(names: Iterable[str]) -> bool:
    """Whether one of the schemes cannot do without a calibration text."""
    return any(kind.name in names for kind in CALIBRATED)


def schemes_named(
    names: Iterable[str], calibration: Mapping[str, ColumnStatistics] | None = None
) -> list[Scheme]:
    """Schemes in the order of a table.

    calibration: what `calibrate` returns, for those that need it.
    Raises ConfigError for an unknown name, or for a scheme without the calibration that it needs.
    """
    known: dict[str, Scheme] = {scheme.name: scheme for scheme in FIXED}
    ordered = check_names(names)
    for kind in CALIBRATED:
        if kind.name in ordered:
            if calibration is None:
                raise ConfigError(f"{kind.name} needs a calibration: give what calibrate(...) returns")
            known[kind.name] = kind(calibration)
    return [known[name] for name in ordered]
