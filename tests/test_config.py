"""`Int8Config`: what it takes, what it refuses, and its JSON."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest

from llmint8 import ConfigError, Int8Config
from llmint8.config import check_threshold, threshold_code


def test_defaults() -> None:
    assert Int8Config() == Int8Config(6.0, None)
    assert Int8Config().to_dict() == {"quant_method": "llmint8", "threshold": 6.0, "skip_modules": None}


@pytest.mark.parametrize(
    ("given", "kept"),
    [(0, 0.0), (-0.0, 0.0), (6, 6.0), (1e300, 1e300), ("auto", "auto"), (np.float64(2), 2.0)],
)
def test_thresholds(given: object, kept: object) -> None:
    threshold = Int8Config(given).threshold
    assert (threshold, type(threshold), str(threshold)) == (kept, type(kept), str(kept))


NUMBERS = (-1, -1e-9, float("nan"), float("inf"), -float("inf"), 10**400)
OTHERS = (True, None, "AUTO", "6.0", "", [6], 1j, np.array(["auto", "auto"]), np.ones(2))


@pytest.mark.parametrize("bad", [*NUMBERS, *OTHERS], ids=lambda value: repr(value)[:9])
def test_bad_thresholds(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"^threshold must be .*\"auto\", got "):
        Int8Config(threshold=bad)
    with pytest.raises(ValueError, match="threshold"):  # for those who catch what Python itself would raise
        check_threshold(bad)


def test_operators_take_one_number() -> None:
    assert [threshold_code(t) for t in (0.0, 6.0, "auto")] == [0.0, 6.0, -1.0]


@pytest.mark.parametrize("names", [["a", "b.c"], ("a", "b.c"), (n for n in ("a", "b.c"))])
def test_skip_modules_of_any_kind_become_a_tuple(names: object) -> None:
    config = Int8Config(skip_modules=names)
    assert config.skip_modules == ("a", "b.c")
    assert hash(config) == hash(Int8Config(skip_modules=("a", "b.c")))


@pytest.mark.parametrize("bad", ["down_proj", [""], [1], ["a", None], 5, [["a"]]])
def test_bad_skip_modules(bad: object) -> None:
    with pytest.raises(ConfigError, match="skip_modules must be a list of module names, got"):
        Int8Config(skip_modules=bad)


@pytest.mark.parametrize(
    "config",
    [
        Int8Config(),
        Int8Config("auto", ["a"]),
        Int8Config(0, []),
        Int8Config(2.5, quantize_head=True, outlier_weights="int16"),
        Int8Config(module_thresholds={"down_proj": "auto", "layers.0": 0}),
    ],
)
def test_json_comes_back(config: Int8Config) -> None:
    text = config.to_json_string()
    assert Int8Config.from_dict(json.loads(text)) == config
    assert json.loads(text) == dict(config) == config.to_dict() == config.to_diff_dict()
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert not [key for key in config.to_dict() if key.startswith("load_in_")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method is 'gptq', expected \"llmint8\""),
        ({"quant_method": "llmint8", "treshold": 6.0}, "unknown field 'treshold'"),
        ({"threshold": -1}, "threshold must be finite"),
        ({"skip_modules": "x"}, "skip_modules must be a list"),
        ({"outlier_weights": "int4"}, 'outlier_weights must be "int8" or "int16"'),
        ({"module_thresholds": {"a": -1}}, "threshold must be finite"),
    ],
)
def test_bad_json(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Int8Config.from_dict(fields)


def test_it_is_frozen_and_reading_does_not_change_what_is_read() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Int8Config().threshold = 1.0
    fields = Int8Config().to_dict()
    Int8Config.from_dict(fields)
    assert fields == Int8Config().to_dict()


def test_the_first_pattern_that_matches_counts() -> None:
    config = Int8Config(module_thresholds={"layers.0": 2, "down_proj": "auto"})
    names = ("layers.0.down_proj", "layers.1.down_proj", "layers.1.up_proj", "layers.10.down_projector")
    assert [config.threshold_of(name) for name in names] == [2.0, "auto", 6.0, 6.0]
    assert hash(config) == hash(Int8Config(module_thresholds=config.module_thresholds))


@pytest.mark.parametrize("bad", ["auto", 5, ["a"], {"": 1}, {1: 1}, [("a", 1, 2)]])
def test_bad_module_thresholds(bad: object) -> None:
    with pytest.raises(ConfigError, match="module_thresholds must be like"):
        Int8Config(module_thresholds=bad)
