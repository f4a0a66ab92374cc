"""Which columns of each layer get a second weight digit: one forward pass over a short text tells.

The float model reads the text, and hooks count how often each input column of a linear layer is an outlier by
the automatic rule. What is kept is one counter for each column.
"""

from __future__ import annotations

import importlib
import textwrap
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import ops, reference
from llmint8.convert.empty import is_linear
from llmint8.errors import ConfigError, QuantizationError
from llmint8.numerics import AUTO_CODE, CODE_MAX

#: Tokens of the text that is read, unless the model takes fewer.
CALIBRATION_TOKENS = 512


def sample_text() -> str:
    """26 KiB of English prose in the public domain (src/llmint8/data/PROVENANCE.md)."""
    return resources.files("llmint8").joinpath("data/jargon_file.txt").read_text(encoding="utf-8")


def default_calibration_ids(model: nn.Module) -> Tensor:
    """The end of the shipped text as token ids int64 `[1, L]`, by the tokenizer from where the model is.

    Raises ConfigError if the model was not loaded by transformers, or without a tokenizer beside it.
    """
    config = getattr(model, "config", None)
    place = str(getattr(config, "name_or_path", "") or "")
    remedy = "give calibration_ids, int64 [1, L], some hundred tokens of text that the model is for"
    if not place:
        raise ConfigError(
            'outlier_weights="int16" needs a text to find columns by, and the model does not say in which '
            f"folder its tokenizer is: {remedy}"
        )
    try:
        load = importlib.import_module("transformers").AutoTokenizer.from_pretrained
        tokenizer = load(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f'outlier_weights="int16" needs a text to find columns by, and {place} holds no tokenizer '
            f"that can be read ({textwrap.shorten(str(error), 100, placeholder='...')}): put its files "
            f"there, or {remedy}"
        ) from error
    limit = getattr(config, "max_position_embeddings", None) or CALIBRATION_TOKENS
    tokens = tokenizer(sample_text(), verbose=False)["input_ids"][-min(CALIBRATION_TOKENS, limit) :]
    # Where transformers makes a model without data, tensors are made on the meta device.
    return torch.tensor([tokens], dtype=torch.int64, device="cpu")


def find_outlier_columns(
    model: nn.Module, names: Iterable[str], calibration_ids: Tensor | None = None
) -> dict[str, Tensor]:
    """The columns of each layer that are outliers most often while the model reads a text.

    model: float, with its weights in memory; it runs in evaluation mode, and is left as it was.
    names: of the modules that are to be int8; those that are no linear layers, or share their weight, are
        passed over.
    calibration_ids: int64 `[1, L]`, what the model reads; None for the end of the shipped text.

    Returns int32 `[P]` by name, P at most 2 % of the layer's columns, for the layers that have any.
    Raises ConfigError if there is nothing to read, QuantizationError for weights without data or outside of
    the memory, or if the model fails.
    """
    ids = default_calibration_ids(model) if calibration_ids is None else calibration_ids
    if ids.dtype != torch.int64 or ids.dim() != 2 or ids.numel() == 0:
        raise ConfigError(
            f"calibration_ids must be token ids int64 [1, L], got {ids.dtype} {list(ids.shape)}"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise QuantizationError(
            'outlier_weights="int16" runs the float model once, and some of its weights are not in memory: '
            "convert on a machine that holds it, or keep outlier_weights='int8'"
        )
    shared = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    layers = {name: model.get_submodule(name) for name in names}
    counts: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(_counter(name, counts), with_kwargs=True)
        for name, layer in layers.items()
        if is_linear(layer) and shared[id(layer.weight)] == 1
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            _read(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    found = {name: reference.outlier_columns(count) for name, count in counts.items()}
    return {name: columns for name, columns in found.items() if len(columns)}


def _counter(name: str, counts: dict[str, Tensor]) -> Any:
    def count(_: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = given[0] if given else next(iter(named.values()))
        rows = x.reshape(-1, x.shape[-1])
        q, _scale = ops.quantize_rows(rows, AUTO_CODE)
        outliers = (q.abs() > CODE_MAX).sum(dim=0).cpu()
        counts[name] = counts[name] + outliers if name in counts else outliers

    return count


def _read(model: nn.Module, ids: Tensor) -> None:
    device = next((p.device for p in model.parameters()), ids.device)
    given: dict[str, Any] = {"input_ids": ids.to(device)}
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = given["input_ids"]
    elif hasattr(config, "use_cache"):
        given["use_cache"] = False
    try:
        model(**given)
    except Exception as error:  # a model of any kind may refuse token ids in any way
        raise QuantizationError(
            'outlier_weights="int16" lets the model read token ids, and it failed '
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}); keep outlier_weights='int8', "
            "or give Int8Linear.from_linear its outlier_cols layer by layer"
        ) from error
