"""The benchmark that trains adapters on three bases, on a tiny model: they learn alike."""

import importlib.util
from pathlib import Path

import pytest

from tiny import save_tiny_checkpoint

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loss_curve.py"


def test_quantised_bases_learn_as_the_float_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("loss_curve", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    save_tiny_checkpoint(tmp_path / "model")
    picture = tmp_path / "curve.png"
    given = ["--model", str(tmp_path / "model"), "--steps", "25", "--batch", "8", "--plot", str(picture)]
    results = script.main(given)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| NF4, AdamW in 8 bits |" in capsys.readouterr().out
    first, *others = results.values()
    assert first.after < first.before - 0.1
    for training in others:
        assert len(training.losses) == 25
        assert abs(training.before - first.before) < 0.02 * first.before
        assert abs(training.after - first.after) < 0.02 * first.after
