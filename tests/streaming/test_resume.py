"""A conversion that is killed: what stays, what goes on, and that the end is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmint8 import CheckpointError, Int8Config, convert_checkpoint
from llmint8.streaming.jobs import Copy, Quantize
from llmint8.streaming.work_folder import WorkFolder
from tiny import save_tiny_checkpoint

from .conftest import contents

MOMENTS = 10


class Killed(BaseException):
    """Unwinds as little as SIGKILL would leave, but for the torn shard."""


@pytest.fixture
def killed_at(monkeypatch):
    """Convert until the n-th weight is quantised, and die there; 0 for not at all."""
    run = Quantize.run

    def convert(src, dst, n, **settings):
        left = n

        def die(job, source, write):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            run(job, source, write)

        with monkeypatch.context() as patch:
            patch.setattr(Quantize, "run", die)
            if n:
                with pytest.raises(Killed):
                    convert_checkpoint(src, dst, max_shard_size=4000, **settings)
            else:
                convert_checkpoint(src, dst, max_shard_size=4000, **settings)

    return convert


def partial(dst: Path) -> Path:
    return dst.with_name(f".{dst.name}.partial")


def test_ten_kills_end_in_the_same_bytes(float_folder, tmp_path):
    program = Path(__file__).with_name("killing.py")
    command = [sys.executable, program, float_folder, tmp_path, str(MOMENTS)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # threads do not survive a fork
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert [kill["killed"] for kill in kills] == [-9] * MOMENTS
    assert any(kill["finished"] and not kill["there"] for kill in kills)
    expected = contents(tmp_path / "uninterrupted")
    assert len([name for name in expected if name.endswith(".safetensors")]) > MOMENTS
    for kill in kills:
        assert contents(tmp_path / kill["name"]) == expected, kill
        leftover = partial(tmp_path / kill["name"])
        assert not leftover.exists() or kill["there"]


def test_finished_shards_are_kept(float_folder, tmp_path, killed_at, monkeypatch):
    dst = tmp_path / "out"
    killed_at(float_folder, dst, 8)
    assert not dst.exists()
    kept = {f: f.stat().st_ino for f in (partial(dst) / "model").glob("*.safetensors")}
    assert len(kept) > 2
    assert not list((partial(dst) / "model").glob("*.torn"))
    monkeypatch.setattr(WorkFolder, "remove", lambda work: None)
    killed_at(float_folder, dst, 0)
    assert {f: (dst / f.name).stat().st_ino for f in kept} == kept


def test_outlier_columns_end_in_the_same_bytes(tmp_path, killed_at):
    src = save_tiny_checkpoint(tmp_path / "wide", hidden_size=64, intermediate_size=200)
    given = {"config": Int8Config(threshold="auto", outlier_weights="int16")}
    killed_at(src, tmp_path / "whole", 0, **given)
    expected = contents(tmp_path / "whole")
    assert b"weight_low" in b"".join(expected.values())
    killed_at(src, tmp_path / "out", 8, **given)
    kept = {f.name for f in (partial(tmp_path / "out") / "model").glob("*.safetensors")}
    assert len(kept) > 2
    killed_at(src, tmp_path / "out", 0, **given)
    assert contents(tmp_path / "out") == expected
    other = given | {"calibration_ids": torch.arange(3)[None]}  # finds other columns, so it starts afresh
    killed_at(src, tmp_path / "others", 0, **other)
    killed_at(src, tmp_path / "again", 8, **given)
    killed_at(src, tmp_path / "again", 0, **other)
    assert contents(tmp_path / "again") == contents(tmp_path / "others") != expected


def test_a_torn_shard_is_redone(float_folder, tmp_path, killed_at):
    dst = tmp_path / "out"
    killed_at(float_folder, tmp_path / "whole", 0)
    killed_at(float_folder, dst, 8)
    first, second = sorted((partial(dst) / "model").glob("*.safetensors"))[:2]
    first.write_bytes(first.read_bytes()[:-1])
    (second.with_name(second.name + ".torn")).write_bytes(b"half")
    killed_at(float_folder, dst, 0)
    assert contents(dst) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "settings",
    [{"config": Int8Config(threshold="auto")}, {"dtype": "bfloat16"}, {"format": "compressed-tensors"}],
)
def test_other_settings_start_afresh(float_folder, tmp_path, killed_at, settings):
    killed_at(float_folder, tmp_path / "out", 8)
    killed_at(float_folder, tmp_path / "out", 0, **settings)
    killed_at(float_folder, tmp_path / "whole", 0, **settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_source_starts_afresh(float_folder, tmp_path, killed_at):
    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    killed_at(float_folder, tmp_path / "out", 8)
    killed_at(other, tmp_path / "out", 0)
    killed_at(other, tmp_path / "whole", 0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_kill_between_the_two_renames_loses_nothing(float_folder, tmp_path, killed_at):
    dst = tmp_path / "out"
    killed_at(float_folder, dst, 0)
    before = contents(dst)
    killed_at(float_folder, dst, 8, force=True)
    dst.rename(partial(dst) / "replaced")
    with pytest.raises(CheckpointError, match="exists already"):
        convert_checkpoint(float_folder, dst)
    assert contents(dst) == before
    killed_at(float_folder, dst, 0, force=True)
    assert not partial(dst).exists()


def test_what_a_kill_after_the_last_rename_leaves_is_removed(float_folder, tmp_path, killed_at):
    dst = tmp_path / "out"
    killed_at(float_folder, dst, 0)
    partial(dst).mkdir()
    (partial(dst) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="exists already"):
        convert_checkpoint(float_folder, dst)
    assert not partial(dst).exists()


def test_two_conversions_to_one_folder_do_not_meet(float_folder, tmp_path, monkeypatch):
    run = Copy.run

    def meddle(job, source, write):
        with pytest.raises(CheckpointError, match=r"another conversion to .* is running"):
            convert_checkpoint(float_folder, tmp_path / "out")
        run(job, source, write)

    monkeypatch.setattr(Copy, "run", meddle)
    convert_checkpoint(float_folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
