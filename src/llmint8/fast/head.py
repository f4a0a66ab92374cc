"""Turn the output head of a converted model int8, and with it the embedding that it is tied to."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from llmint8.config import Int8Config
from llmint8.convert import is_linear, replace_modules, tie_companions
from llmint8.convert.empty import int8_from
from llmint8.convert.ties import shared_weights
from llmint8.errors import QuantizationError
from llmint8.nn import INT8_MODULES, Int8Linear, is_embedding


def quantize_head(model: nn.Module) -> None:
    """Convert the output head in place.

    Its threshold is what the configuration says, or that of the model's other layers. A head that is int8
    already stays. The configuration that `save_pretrained` writes says so.
    Raises QuantizationError for a model without a head, or one that is no plain linear layer.
    """
    head, name = output_head(model)
    if head is None:
        raise QuantizationError(f'{type(model).__name__} has no output head; use head="keep"')
    if isinstance(head, INT8_MODULES):
        return
    ties = next((names for names in shared_weights(model) if name in names), [name])
    for tied in ties:
        module = model.get_submodule(tied)
        if not (is_linear(module) or is_embedding(module)):
            raise QuantizationError(f'{tied} is a {type(module).__name__}, not int8 so far; use head="keep"')
    saved = _saved(model)
    threshold = next(m for m in model.modules() if isinstance(m, Int8Linear)).threshold
    if isinstance(saved, Int8Config):  # a pattern may name the head, or the layer that was asked
        threshold = saved.threshold_of(name)
    shared: list[nn.Parameter] = []

    def convert(each: str, source: nn.Module) -> nn.Module:
        new: Any = int8_from(source, threshold, each)
        shared.append(new.weight)
        new.weight = shared[0]  # tied modules keep one weight
        return new  # type: ignore[no-any-return]

    replace_modules(model, ties, convert)
    tie_companions(model, ties)
    _note(model, threshold, embeddings=len(ties) > 1)


def output_head(model: Any) -> tuple[nn.Module | None, str]:
    """The output head of a model and its name; None and "" if it has none."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    names = [name for name, module in model.named_modules() if module is head]
    return (head, names[0]) if head is not None and names else (None, "")


def _saved(model: Any) -> Any:
    return getattr(getattr(model, "config", None), "quantization_config", None)


def _note(model: Any, threshold: Any, embeddings: bool) -> None:
    saved = _saved(model)
    if saved is None:
        return
    # Another format's configuration has no word for a head that is int8.
    config = saved if isinstance(saved, Int8Config) else Int8Config(threshold)
    embeddings = embeddings or config.quantize_embeddings
    model.config.quantization_config = dataclasses.replace(
        config, quantize_head=True, quantize_embeddings=embeddings
    )
