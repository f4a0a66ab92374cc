"""The one configuration object: frozen, JSON in and out, free of torch and transformers.

It has the methods that transformers calls on a quantization config, so an `Int8Config` can be handed to
`from_pretrained(..., quantization_config=...)` as it is.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from llmint8.errors import ConfigError
from llmint8.numerics import AUTO, AUTO_CODE, DEFAULT_THRESHOLD, PAPER_THRESHOLD

Threshold = float | Literal["auto"]
OutlierWeights = Literal["int8", "int16"]


def check_threshold(value: object) -> Threshold:
    """Return `value` as a threshold: 0 (no outliers), t > 0 (|x| >= t is an outlier) or "auto".

    Raises ConfigError for anything else.
    """
    if isinstance(value, str) and value == AUTO:
        return "auto"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f'threshold must be a number >= 0 or "auto", got {value!r}')
    if not 0 <= value <= sys.float_info.max:
        raise ConfigError(
            "threshold must be finite and >= 0 (0 keeps no outliers, 6.0 is the paper's) "
            f'or "auto", got {value!r}'
        )
    return abs(float(value))  # -0.0 is 0


def threshold_code(threshold: Threshold) -> float:
    """The threshold as operators take it, one float: "auto" is -1."""
    return AUTO_CODE if isinstance(threshold, str) else threshold


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a module: its full name, a parent, its last parts, or parts within."""
    return re.search(rf"(^|\.){re.escape(pattern)}($|\.)", name) is not None


@dataclasses.dataclass(frozen=True)
class Int8Config:
    """How a model is converted to int8.

    threshold: 0 (no outliers), a magnitude from which an activation counts as an outlier and is kept at
        16 bits (6.0, the paper's rule), or "auto" (eight times the mean magnitude of the row).
    skip_modules: names of modules that stay as they are, besides the output head: a full name, the name of
        a parent ("model.layers.0"), or the last parts of a name ("down_proj").
    quantize_head: whether the output head becomes int8 too. One that is tied to the embedding does so only
        together with it.
    quantize_embeddings: whether embeddings become int8 too, one scale per vector. One that is tied to a head
        does so only together with it: one int8 weight then serves both.
    outlier_weights: the bits of the weights that outliers meet, "int8", or "int16" in at most 2 % of a linear
        layer's columns, those that are outliers most often while the float model reads a short text.
    module_thresholds: thresholds of some modules by pattern, such as {"down_proj": "auto", "layers.0": 0}; a
        pattern is like those of `skip_modules`, and the first that matches decides. All others have
        `threshold`. Kept as pairs, so that the configuration can be hashed.

    Raises ConfigError for a value outside its range.
    """

    threshold: Threshold = DEFAULT_THRESHOLD
    skip_modules: tuple[str, ...] | None = None
    quantize_head: bool = False
    quantize_embeddings: bool = False
    outlier_weights: OutlierWeights = "int8"
    module_thresholds: tuple[tuple[str, Threshold], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", check_threshold(self.threshold))
        object.__setattr__(self, "module_thresholds", _check_module_thresholds(self.module_thresholds))
        if self.outlier_weights not in ("int8", "int16"):
            raise ConfigError(f'outlier_weights must be "int8" or "int16", got {self.outlier_weights!r}')
        for field in ("quantize_head", "quantize_embeddings"):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise ConfigError(f"{field} must be True or False, got {value!r}")
        skip = self.skip_modules
        if skip is None:
            return
        names = () if isinstance(skip, str) or not isinstance(skip, Iterable) else tuple(skip)
        if (skip and not names) or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"skip_modules must be a list of module names, got {skip!r}")
        object.__setattr__(self, "skip_modules", names)

    @property
    def quant_method(self) -> str:
        """The name under which transformers finds the quantizer."""
        return "llmint8"

    def threshold_of(self, name: str) -> Threshold:
        """The threshold of the module of this full name."""
        pattern = self.pattern_of(name)
        return self.threshold if pattern is None else dict(self.module_thresholds or ())[pattern]

    def pattern_of(self, name: str) -> str | None:
        """The first pattern of `module_thresholds` that matches a full name; None if none does."""
        patterns = (pattern for pattern, _ in self.module_thresholds or ())
        return next((pattern for pattern in patterns if matches(name, pattern)), None)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types, with `quant_method`."""
        skip = None if self.skip_modules is None else list(self.skip_modules)
        fields = {"quant_method": self.quant_method, "threshold": self.threshold, "skip_modules": skip}
        # Only where they are on, so that earlier releases read what they can read.
        extra: dict[str, Any] = {
            f: True for f in ("quantize_head", "quantize_embeddings") if getattr(self, f)
        }
        if self.outlier_weights != "int8":
            extra["outlier_weights"] = self.outlier_weights
        if self.module_thresholds is not None:
            # Pairs: the first that matches decides, and transformers sorts the keys of what it saves.
            extra["module_thresholds"] = [list(pair) for pair in self.module_thresholds]
        return fields | extra

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Pairs for `dict(config)`, which transformers calls."""
        return iter(self.to_dict().items())

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`; transformers asks under this name too."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:  # noqa: ARG002 - transformers passes it
        """The configuration as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Int8Config:
        """Read what `to_dict` wrote; where no threshold is written, it is the paper's.

        Raises ConfigError for another quant_method or an unknown field.
        """
        fields = {"threshold": PAPER_THRESHOLD} | dict(config_dict)
        method = fields.pop("quant_method", "llmint8")
        if method != "llmint8":
            raise ConfigError(f'quant_method is {method!r}, expected "llmint8"')
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(
                f"unknown field {unknown[0]!r} in an llmint8 configuration: is llmint8 too old?"
            )
        return cls(**fields)


def _check_module_thresholds(given: object) -> tuple[tuple[str, Threshold], ...] | None:
    if given is None:
        return None
    try:
        pairs = dict(given)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        pairs = {"": given}
    if not all(isinstance(pattern, str) and pattern for pattern in pairs):
        raise ConfigError(f'module_thresholds must be like {{"down_proj": "auto"}}, got {given!r}')
    return tuple((pattern, check_threshold(own)) for pattern, own in pairs.items()) or None
