"""Models and tokenizers from local folders; whatever transformers says of a bad one becomes one line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmint8.cli.options import Dtype
from llmint8.cli.quiet import quiet_transformers
from llmint8.cli.smollm2 import SMOLLM2, smollm2_folder
from llmint8.errors import CheckpointError, LLMInt8Error, QuantizationError

if TYPE_CHECKING:
    from llmint8.checkpoint import CheckpointSummary


def find_model(name: str) -> CheckpointSummary:
    """A model by its path or as "smollm2" (a folder of that name is "./smollm2"), its headers checked.

    Raises CheckpointError if there is none, if files are torn or missing, or if int8 weights and config.json
    contradict each other, and QuantizationError for another quantised format.
    """
    from llmint8.checkpoint import inspect_checkpoint

    folder = smollm2_folder() if name == SMOLLM2 else Path(name)
    if not folder.exists():
        raise CheckpointError(f'{name} does not exist; give a local model folder, or "{SMOLLM2}"')
    if not folder.is_dir():
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json and the weights")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name} holds no config.json; give a folder that save_pretrained wrote")
    summary = inspect_checkpoint(folder)
    if summary.quantization is None and summary.int8_layers:
        raise CheckpointError(
            f"{folder} holds int8 weights, but its config.json has no quantization_config; convert it again"
        )
    if summary.quantization is None:
        return summary
    if not is_int8_format(summary.quantization):
        method = summary.quantization.get("quant_method")
        raise QuantizationError(
            f"{folder} is quantised already, as {method!r}; give the float model it was made from"
        )
    if not summary.int8_layers:
        raise CheckpointError(
            f"{folder} is int8 by its config.json, but holds no int8 weight; convert the float model again"
        )
    return summary


def is_int8_format(quantization: dict[str, Any]) -> bool:
    """Whether a quantization_config is ours or that of bitsandbytes in 8 bits, whose tensors are the same."""
    method = quantization.get("quant_method")
    return method == "llmint8" or (method == "bitsandbytes" and quantization.get("load_in_8bit") is True)


def find_float_model(name: str, purpose: str) -> CheckpointSummary:
    """The same for a float model. purpose: what it is for, in the words of an error.

    Raises QuantizationError if it is int8 already.
    """
    found = find_model(name)
    if found.quantization is not None:
        raise QuantizationError(f"{name} is int8 already; {purpose} takes the float model")
    return found


def load_float(found: CheckpointSummary, dtype: Dtype) -> Any:
    """A float model, in evaluation mode. Raises CheckpointError if it cannot be loaded."""
    return _load(found.path, dtype)


def load_int8(
    found: CheckpointSummary,
    threshold: float | str | None,
    dtype: Dtype,
    module_threshold: Sequence[tuple[str, Any]] | None = None,
) -> Any:
    """An int8 model, in evaluation mode: a float one is quantised while it is read.

    threshold: None is the default for a float model, and what was saved for an int8 one.
    module_threshold: pairs of a pattern and the threshold of the layers that it names; the first that names
        a layer decides.
    Raises CheckpointError if it cannot be loaded, QuantizationError for a non-finite weight, ConfigError for
    a pattern that names no layer.
    """
    from llmint8.config import Int8Config
    from llmint8.convert import set_threshold

    if found.quantization is None:
        config = Int8Config(
            Int8Config.threshold if threshold is None else threshold,  # type: ignore[arg-type]
            module_thresholds=tuple(module_threshold or ()),
        )
        return _load(found.path, dtype, quantization_config=config)
    model = _load(found.path, dtype)
    if threshold is not None:
        set_threshold(model, threshold)  # type: ignore[arg-type]
    for pattern, own in reversed(module_threshold or ()):
        set_threshold(model, own, [pattern])
    return model


def threshold_of(model: Any) -> float | str:
    """The threshold of the int8 layers of a model; "by layer" where they have several."""
    from llmint8.nn import Int8Linear

    thresholds = {m.threshold for m in model.modules() if isinstance(m, Int8Linear)}
    return thresholds.pop() if len(thresholds) == 1 else "by layer"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises CheckpointError if it has none that works."""
    transformers = quiet_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer that can be loaded ({_shortened(error)}); "
            "copy tokenizer.json and tokenizer_config.json there"
        ) from error


def _load(folder: Path, dtype: Dtype, **settings: Any) -> Any:
    from llmint8.integrations import bitsandbytes

    transformers = quiet_transformers()
    try:
        with bitsandbytes.enabled():  # its checkpoints run on llmint8 here even where it is installed
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
        raise CheckpointError(
            f"{folder} cannot be loaded ({_shortened(error)}); check config.json, or fetch the model again"
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


def _shortened(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
