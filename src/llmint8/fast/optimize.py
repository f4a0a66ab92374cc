"""`optimize_for_inference(model)`: let `model(...)` and `model.generate` take the fast path."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from llmint8.errors import ConfigError, QuantizationError
from llmint8.fast.engine import Engine
from llmint8.fast.forward import CausalForward, DecoderForward, FastForward
from llmint8.fast.head import output_head, quantize_head
from llmint8.nn import INT8_MODULES

M = TypeVar("M", bound=nn.Module)
_LOG = logging.getLogger("llmint8")


@dataclass(frozen=True)
class FastPath:
    """What of a model takes the fast path.

    layers: decoder layers that run in one call; 0 where the model keeps its own forward.
    reason: why it does, or None. head: "int8", "float" or "none".
    """

    layers: int
    reason: str | None
    head: Literal["int8", "float", "none"]

    def __str__(self) -> str:
        head = {"int8": "int8 output head", "float": "output head as it was", "none": "no output head"}
        if self.reason is not None:
            return f"the model's own forward ({self.reason}), {head[self.head]}"
        return f"all {self.layers} layers in one call, {head[self.head]}"


def optimize_for_inference(model: M, head: Literal["keep", "int8"] = "keep") -> M:
    """Give a model of transformers with int8 layers the fast path, in place; returns the model.

    A decoder whose layers compute what Llama's do (Llama, SmolLM2, Mistral, Qwen2, Qwen3 and their kin) runs
    all of its layers in one call of the library; its cache grows in place. Weights are used where they are.
    What the fast path does not cover (gradients, hooks, adapters, recorded attentions, masks of four
    dimensions, other caches, compilation) takes the model's own forward, call by call; so does every model of
    another kind, which is logged once. `fast_path(model)` says which; `restore(model)` undoes it.

    head: "keep", or "int8" to make the output head int8 too, with the embedding if they share a weight.
        That changes results by the rounding of the head; "keep" by the float rounding of attention and
        norms alone.
    Raises QuantizationError if the model has no int8 layer, ConfigError for another value of head.
    """
    if head not in ("keep", "int8"):
        raise ConfigError(f'head must be "keep" or "int8", got {head!r}')
    if not any(isinstance(module, INT8_MODULES) for module in model.modules()):
        raise QuantizationError(
            "the model has no int8 layer: convert it with quantize_model(model), then optimise it"
        )
    if head == "int8":
        quantize_head(model)
    base = _decoder(model)
    if base is not None and not any("forward" in module.__dict__ for module in (model, base)):
        engine = Engine(model)
        base.forward = DecoderForward(base, engine)
        if engine.prepared().head_reason is None:
            model.forward = CausalForward(model, engine)
    result = fast_path(model)
    if result.reason is not None:
        restore(model)
        _LOG.warning("optimize_for_inference: %s keeps %s", type(model).__name__, result)
    return model


def fast_path(model: nn.Module) -> FastPath:
    """What of the model, as it is now, takes the fast path."""
    base = _decoder(model)
    module, _ = output_head(model)
    head: Literal["int8", "float", "none"] = (
        "none" if module is None else "int8" if isinstance(module, INT8_MODULES) else "float"
    )
    if base is None:
        return FastPath(0, f"{type(model).__name__} is no decoder like Llama's", head)
    forward = base.__dict__.get("forward")
    if not isinstance(forward, FastForward):
        reason = "it is not optimised" if forward is None else "another library has replaced its forward"
        return FastPath(0, reason, head)
    prepared = forward.engine.prepared()
    return FastPath(prepared.count, prepared.reason, head)


def restore(model: M) -> M:
    """Undo `optimize_for_inference`, but for the head, in place; returns the model."""
    for module in (model, _decoder(model)):
        if module is not None and isinstance(module.__dict__.get("forward"), FastForward):
            del module.forward
    return model


def _decoder(model: nn.Module) -> Any:
    """The part of a model that could be a decoder like Llama's, or None."""
    base = getattr(model, "base_model", None)
    return base if isinstance(base, nn.Module) and hasattr(base, "rotary_emb") else None
