"""Models and tokenizers from local folders; whatever transformers says of a bad one becomes one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmint8.cli.options import Dtype
from llmint8.cli.quiet import quiet_transformers
from llmint8.cli.smollm2 import SMOLLM2, smollm2_folder
from llmint8.errors import CheckpointError, LLMInt8Error, QuantizationError

if TYPE_CHECKING:
    from llmint8.checkpoint import CheckpointSummary


def model_folder(name: str) -> Path:
    """The folder of a model: a path, or "smollm2" (a folder of that name is "./smollm2").

    Raises CheckpointError if there is none.
    """
    if name == SMOLLM2:
        return smollm2_folder()
    folder = Path(name)
    if not folder.exists():
        raise CheckpointError(f'{name} does not exist; give a local model folder, or "{SMOLLM2}"')
    if not folder.is_dir():
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json and the weights")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name} holds no config.json; give a folder that save_pretrained wrote")
    return folder


def check_model(folder: Path) -> CheckpointSummary:
    """What the headers of a model folder say, found consistent with its config.json.

    Raises CheckpointError for files that are torn or missing, or int8 weights that nothing declares, and
    QuantizationError for a model in another quantised format.
    """
    from llmint8.checkpoint import inspect_checkpoint

    summary = inspect_checkpoint(folder)
    method = None if summary.quantization is None else summary.quantization.get("quant_method")
    if summary.quantization is None and summary.int8_layers:
        raise CheckpointError(
            f"{folder} holds int8 weights, but its config.json has no quantization_config; convert it again"
        )
    if summary.quantization is not None and method != "llmint8":
        raise QuantizationError(
            f"{folder} is quantised already, as {method!r}; give the float model it was made from"
        )
    if summary.quantization is not None and not summary.int8_layers:
        raise CheckpointError(
            f"{folder} is int8 by its config.json, but holds no int8 weight; convert the float model again"
        )
    return summary


def load_float(folder: Path, dtype: Dtype, purpose: str) -> Any:
    """A float model, in evaluation mode.

    purpose: what the model is for, in the words of an error.
    Raises QuantizationError if it is int8 already, CheckpointError if it cannot be loaded.
    """
    if check_model(folder).quantization is not None:
        raise QuantizationError(f"{folder} is int8 already; {purpose} takes the float model")
    return _load(folder, dtype)


def load_int8(folder: Path, threshold: float | str | None, dtype: Dtype) -> Any:
    """An int8 model, in evaluation mode: a float folder is quantised while it is read.

    threshold: None is 6.0 for a float folder, and what was saved for an int8 one.
    """
    from llmint8.config import Int8Config
    from llmint8.nn import Int8Linear

    if check_model(folder).quantization is None:
        config = Int8Config() if threshold is None else Int8Config(threshold)  # type: ignore[arg-type]
        return _load(folder, dtype, quantization_config=config)
    model = _load(folder, dtype)
    if threshold is not None:
        for module in model.modules():
            if isinstance(module, Int8Linear):
                module.threshold = threshold  # type: ignore[assignment]
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises CheckpointError if it has none that works."""
    transformers = quiet_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer that can be loaded ({_first_line(error)}); "
            "copy tokenizer.json and tokenizer_config.json there"
        ) from error


def _load(folder: Path, dtype: Dtype, **settings: Any) -> Any:
    transformers = quiet_transformers()
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype.value,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, where the tensor can be named
            **settings,
        )
    except LLMInt8Error as error:
        raise type(error)(f"{folder}: {error}") from error
    except Exception as error:  # transformers raises anything for a file that it does not understand
        _check_finite(folder)
        raise CheckpointError(
            f"{folder} cannot be loaded ({_first_line(error)}); check config.json, or fetch the model again"
        ) from error
    _check_complete(folder, info)
    return model.eval()


def _check_complete(folder: Path, info: dict[str, Any]) -> None:
    """A tensor that did not find its place leaves random numbers or drops a layer: neither is a model."""
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{folder}: {name} is {list(stored)} in the file, but config.json wants {list(expected)}; "
            "restore the config.json that belongs to the weights"
        )
    for kind, meaning in (
        ("missing_keys", "missing in the files"),
        ("unexpected_keys", "not part of the model"),
    ):
        names = sorted(info[kind])
        if names:
            more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
            raise CheckpointError(
                f"{folder}: {names[0]}{more} {meaning} that config.json describes; "
                "restore the config.json that belongs to the weights"
            )


def _check_finite(folder: Path) -> None:
    """Name the weight that stopped a quantisation, which transformers keeps to itself."""
    import torch
    from safetensors import safe_open

    from llmint8.checkpoint import shard_files

    for file in shard_files(folder):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if not torch.isfinite(tensors.get_tensor(name)).all():
                    raise QuantizationError(
                        f"{folder}: {name} holds a NaN or an infinity, which no scale can represent; "
                        "repair the weight, or fetch the model again"
                    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
