"""Recognise decoders that compute what Llama's do, by what they are made of and what their code names.

A class name says little: models derive from one another and change one line. So the parts of a model must be
known, and its functions must refer to nothing but names that are understood here. A factor on the residual, a
cap on the scores or a norm of another kind brings a name of its own, and such a model keeps its own forward.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmint8.nn import Int8Linear

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: What functions may refer to: parts, sizes, and the torch and transformers functions that join them.
_COMMON = _names("""
    torch Tensor nn functional shape view reshape transpose contiguous size dtype device to float32 float
    config hidden_states attention_mask position_ids position_embeddings cache past_key_values use_cache
    kwargs training layer_idx layer_type
""")
_KNOWN_NAMES = {
    "norm": _COMMON | _names("weight variance_epsilon eps pow mean rsqrt square"),
    "mlp": _COMMON | _names("gate_proj up_proj down_proj act_fn"),
    "attention": _COMMON
    | _names("""
        q_proj k_proj v_proj o_proj q_norm k_norm head_dim apply_rotary_pos_emb update scaling
        attention_dropout sliding_window getattr ALL_ATTENTION_FUNCTIONS get_interface _attn_implementation
        eager_attention_forward Callable
    """),
    "layer": _COMMON | _names("self_attn mlp input_layernorm post_attention_layernorm"),
    "model": _COMMON
    | _names("""
        ValueError embed_tokens layers norm rotary_emb num_hidden_layers DynamicCache get_seq_length arange
        unsqueeze create_causal_mask create_sliding_window_causal_mask isinstance dict items enumerate
        sliding_window has_sliding_layers layer_types BaseModelOutputWithPast
    """),
    "head": _COMMON
    | _names("""
        model lm_head last_hidden_state slice_logits_to_keep isinstance int slice loss_function vocab_size
        CausalLMOutputWithPast attentions
    """),
}
_ACTIVATIONS = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUActivation": "gelu",
}
_LAYER_TYPES = ("full_attention", "sliding_attention")


class NotCoveredError(Exception):
    """Why a model, or a state of it, does not take the fast path; its message is the reason."""


@dataclass(frozen=True)
class LayerParts:
    """The modules of one decoder layer. window: tokens that a query sees, itself included; None for all."""

    layer: Any
    attention: Any
    mlp: Any
    activation: str
    window: int | None

    def norms(self) -> list[Any]:
        """Every norm of the layer."""
        attention = [getattr(self.attention, name, None) for name in ("q_norm", "k_norm")]
        return [self.layer.input_layernorm, self.layer.post_attention_layernorm, *filter(None, attention)]

    def linears(self) -> list[Any]:
        """Every linear layer, in the order q, k, v, o, gate, up, down."""
        return [getattr(self.attention, n) for n in _ATTENTION] + [getattr(self.mlp, n) for n in _MLP]


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise NotCoveredError(reason)


def _check_names(module: nn.Module, kind: str) -> None:
    """The forward of a module's class refers to understood names alone."""
    name = type(module).__name__
    function = inspect.unwrap(type(module).forward)
    code: Any = getattr(function, "__code__", None)
    _require(code is not None, f"{name} has a forward that cannot be read")
    strange = sorted(set(code.co_names) - _KNOWN_NAMES[kind])
    _require(not strange, f"{name} computes something more ({', '.join(strange[:3])})")
    # Python from 3.12 inlines comprehensions; older ones and nested functions keep code of their own.
    nested = any(inspect.iscode(constant) for constant in code.co_consts)
    _require(not nested, f"{name} computes something more (a function of its own)")


def _children(module: nn.Module, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    names = {name for name, child in module.named_children() if child is not None}
    name = type(module).__name__
    missing, more = sorted(set(needed) - names), sorted(names - set(needed) - set(optional))
    _require(not missing, f"{name} has no {', '.join(missing)}")
    _require(not more, f"{name} has also {', '.join(more[:3])}")
    own = [key for key, parameter in module._parameters.items() if parameter is not None]
    _require(not own, f"{name} has parameters of its own ({', '.join(own[:3])})")


def _check_norm(norm: nn.Module) -> None:
    name = type(norm).__name__
    _require(set(dict(norm.named_parameters())) == {"weight"}, f"{name} is no RMSNorm with one weight")
    _require(isinstance(norm_epsilon(norm), float), f"{name} has no epsilon")
    _check_names(norm, "norm")


def norm_epsilon(norm: Any) -> float:
    """What an RMSNorm adds to the mean square."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))  # type: ignore[return-value]


def _check_linear(linear: nn.Module, name: str) -> None:
    kind = type(linear)
    _require(kind in (Int8Linear, nn.Linear), f"{name} is a {kind.__module__}.{kind.__qualname__}")


def _window(config: Any, attention: Any, index: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds else None
    _require(kind is None or kind in _LAYER_TYPES, f"layer {index} attends by {kind}")
    code = inspect.unwrap(type(attention).forward).__code__
    if hasattr(attention, "sliding_window"):
        window = attention.sliding_window
    elif kind == "sliding_attention" or "sliding_window" in code.co_consts:  # as in getattr(config, ...)
        window = getattr(config, "sliding_window", None)
    else:
        window = None
    return None if window is None else int(window)


def _layer_parts(config: Any, layer: Any, index: int) -> LayerParts:
    _children(layer, ("self_attn", "mlp", *_NORMS))
    attention, mlp = layer.self_attn, layer.mlp
    _children(attention, _ATTENTION, ("q_norm", "k_norm"))
    _children(mlp, _MLP, ("act_fn",))
    for module, kind in ((layer, "layer"), (attention, "attention"), (mlp, "mlp")):
        _check_names(module, kind)
    activation: Any = _ACTIVATIONS.get(type(mlp.act_fn).__name__)
    _require(activation is not None, f"the activation {type(mlp.act_fn).__name__}")
    parts = LayerParts(layer, attention, mlp, activation, _window(config, attention, index))
    for norm in parts.norms():
        _check_norm(norm)
    for name, linear in zip((*_ATTENTION, *_MLP), parts.linears(), strict=True):
        _check_linear(linear, name)
    return parts


def decoder_layers(base: Any) -> list[LayerParts]:
    """The layers of a decoder without its head, in order.

    Raises NotCoveredError for anything that does not compute what the decoders of Llama, Mistral, Qwen2 and
    Qwen3 in transformers do.
    """
    _children(base, ("embed_tokens", "layers", "norm", "rotary_emb"))
    _check_names(base, "model")
    _check_norm(base.norm)
    config = base.config
    layers = list(base.layers[: config.num_hidden_layers])
    _require(bool(layers), "the model has no layers")
    parts = [_layer_parts(config, layer, index) for index, layer in enumerate(layers)]
    _require(
        any(isinstance(linear, Int8Linear) for part in parts for linear in part.linears()),
        "no layer is int8",
    )
    scalings = {part.attention.scaling for part in parts}
    sizes = {part.attention.head_dim for part in parts}
    _require(len(scalings) == 1 and len(sizes) == 1, "layers differ in their heads")
    epsilons = {norm_epsilon(norm) for part in parts for norm in part.norms()} | {norm_epsilon(base.norm)}
    _require(len(epsilons) == 1, "norms differ in their epsilon")
    dtypes = {norm.weight.dtype for part in parts for norm in part.norms()} | {base.norm.weight.dtype}
    _require(len(dtypes) == 1, "norms differ in their dtype")
    _require(dtypes <= {torch.float32, torch.float16, torch.bfloat16}, f"norms are {dtypes}")
    return parts


def causal_head(model: Any) -> Any:
    """The output head of a causal language model that computes nothing besides it.

    Raises NotCoveredError for a model that does, or has no head.
    """
    _children(model, (model.base_model_prefix, "lm_head"))
    _check_names(model, "head")
    _check_linear(model.lm_head, "lm_head")
    return model.lm_head
