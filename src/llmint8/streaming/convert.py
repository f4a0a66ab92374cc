"""Convert a checkpoint folder to an int8 one, tensor by tensor: the model never exists in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from llmint8.checkpoint import check_inside, read_json, read_quantization
from llmint8.config import Int8Config
from llmint8.convert import (
    ConversionReport,
    default_calibration_ids,
    find_outlier_columns,
    plan_conversion,
)
from llmint8.errors import CheckpointError, ConfigError, LLMInt8Error, QuantizationError
from llmint8.streaming.formats import FORMATS
from llmint8.streaming.plan import StreamPlan, plan_stream
from llmint8.streaming.shard import ShardWriter, write_text
from llmint8.streaming.source import Source
from llmint8.streaming.structure import Structure
from llmint8.streaming.target import check_space, check_target, parse_size
from llmint8.streaming.work_folder import WorkFolder

#: What lies beside the weights and belongs to the model: tokenizer, chat template, generation settings.
_COMPANIONS = (".json", ".jinja", ".model", ".txt")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_INDEX = "model.safetensors.index.json"


def convert_checkpoint(
    src: str | Path,
    dst: str | Path,
    config: Int8Config | None = None,
    *,
    format: str = "llmint8",
    dtype: str = "auto",
    max_shard_size: int | str = "5GB",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    calibration_ids: Tensor | None = None,
) -> ConversionReport:
    """Write an int8 checkpoint of the float model in folder `src` to the new folder `dst`.

    `from_pretrained(dst)` gives the tensors that `from_pretrained(src, quantization_config=config)` gives.
    Weights are read, converted and written in blocks of 16 MiB (a `Conv1D` whole). `dst` appears when it is
    complete. A conversion that was killed goes on where it was when it is started again with the same
    arguments: it keeps its finished shards in a hidden folder beside `dst`.

    config: `Int8Config()` when None.
    format: "llmint8", "bitsandbytes" or "compressed-tensors" (which has no threshold, and stores none).
    dtype: of what stays float: "auto" (as stored), "float32", "bfloat16" or "float16". As in loading, weights
        are cast to it before they are quantised.
    max_shard_size: bytes of a file, or a size such as "500MB"; a larger tensor has a file of its own.
    force: replace `dst` if it is a checkpoint.
    progress: called with (tensors done, tensors in all).
    calibration_ids: as for `quantize_model`. With `outlier_weights="int16"` the float model is loaded once,
        in `dtype`, and reads them before the conversion starts: the memory must hold it.

    Returns the report: what was converted, what was skipped and why.
    Raises CheckpointError for files that are missing, torn, pickled or do not fit config.json, a target that
    exists, or a full disk; QuantizationError for a non-finite weight or a model that is quantised already;
    ConfigError for a bad argument; LLMInt8Error without transformers. After these nothing is left behind.
    """
    src, dst, config = Path(src), Path(dst), config or Int8Config()
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    limit = parse_size(max_shard_size)
    _check_float_folder(src)
    work = WorkFolder(dst)
    work.recover()
    check_target(dst, force, src)
    source = Source(src)
    structure = Structure(source, dtype)
    columns = {}
    if config.outlier_weights == "int16":
        FORMATS[format].config(config, structure.model, ())  # refuse what it cannot say before the work
        columns = _outlier_columns(structure, src, config, calibration_ids)
    plan = plan_stream(source, structure, config, FORMATS[format], limit, columns)
    settings = {
        "quantization": plan.quantization,
        "dtype": dtype,
        "max_shard_size": limit,
        "columns": {name: found.tolist() for name, found in columns.items()},
    }
    versions = [version(name) for name in ("llmint8", "transformers", "torch")]
    state = {"source": source.fingerprint(), "settings": settings, "versions": versions}
    companions = _companions(src)
    with work.locked():
        try:
            work.resume(state)
            _write_shards(source, plan, work, companions, progress)
            _write_companions(src, plan, work.model, companions)
            work.finish()
        except LLMInt8Error:
            work.remove()
            raise
        except BaseException:
            if not any(work.model.glob("*.safetensors")):
                work.remove()
            raise
    return plan.report


def _outlier_columns(
    structure: Structure, src: Path, config: Int8Config, calibration_ids: Tensor | None
) -> dict[str, Tensor]:
    if calibration_ids is None:  # before the weights are read: there may be no tokenizer
        calibration_ids = default_calibration_ids(structure.model)
    model = type(structure.model).from_pretrained(src, dtype=structure.dtype)
    names = plan_conversion(model, config.skip_modules, config).convert
    return find_outlier_columns(model, names, calibration_ids)


def _check_float_folder(src: Path) -> None:
    if not src.is_dir() or not (src / "config.json").is_file():
        raise CheckpointError(f"{src} holds no config.json; give a local model folder")
    found = read_quantization(src)
    if found is not None:
        raise QuantizationError(
            f"{src} is quantised already, as {found.get('quant_method')!r}; give the float model"
        )


def _companions(src: Path) -> list[Path]:
    """The files to copy. Raises CheckpointError for one that is a link out of the folder."""
    found = [
        file
        for file in sorted(src.iterdir())
        if file.is_file() and file.suffix in _COMPANIONS and not file.name.endswith(".index.json")
        if file.name != "config.json"
    ]
    for file in found:
        check_inside(file, src)
    return found


def _write_shards(
    source: Source,
    plan: StreamPlan,
    work: WorkFolder,
    companions: list[Path],
    progress: Callable[[int, int], None] | None,
) -> None:
    finished = {s.name for s in plan.shards if s.layout.holds(work.model / s.name)}
    needed = sum(s.layout.size for s in plan.shards if s.name not in finished)
    check_space(work.root, needed + sum(file.stat().st_size for file in companions) + (1 << 20))
    done, total = 0, sum(len(s.jobs) for s in plan.shards)
    for shard in plan.shards:
        if shard.name in finished:
            done += len(shard.jobs)
            continue
        with ShardWriter(work.model / shard.name, shard.layout) as writer:
            for job in shard.jobs:
                job.run(source, writer.write)
                done += 1
                if progress is not None:
                    progress(done, total)


def _write_companions(src: Path, plan: StreamPlan, folder: Path, companions: list[Path]) -> None:
    """All files that are no weights; config.json last, without which a folder is no model."""
    for file in companions:
        shutil.copyfile(file, folder / file.name)
    index = plan.index()
    if index is not None:
        write_text(folder / _INDEX, json.dumps(index, indent=2) + "\n")
    settings: dict[str, Any] = read_json(src / "config.json")
    settings.pop("torch_dtype", None)
    settings["dtype"] = str(plan.dtype).removeprefix("torch.")
    settings["quantization_config"] = plan.quantization
    write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
