"""The description of a model for the decoder kernels: its own tensors, in the order of their use."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmint8.backends.decoder import NativeDecoder, Runner
from llmint8.backends.native import engine
from llmint8.errors import InputError
from llmint8.fast.structure import LayerParts, NotCoveredError, decoder_layers, norm_epsilon
from llmint8.nn import Int8Linear
from llmint8.reference import decoder as meaning


def describe(base: Any, head: Any = None) -> meaning.Decoder:
    """A decoder and its output head, if that is given, as the kernels take them; no tensor is copied.

    Raises NotCoveredError for a model that computes anything else.
    """
    parts = decoder_layers(base)
    attention, config = parts[0].attention, base.config
    dtype = base.norm.weight.dtype
    linears = [linear for part in parts for linear in part.linears()]
    if head is not None:
        linears.append(head)
    for linear in linears:
        if not all(tensor.is_cpu for tensor in linear.parameters()):
            raise NotCoveredError("weights are not in the memory of the CPU")
        if not isinstance(linear, Int8Linear) and linear.weight.dtype != dtype:
            raise NotCoveredError(f"a float layer is {linear.weight.dtype}, norms are {dtype}")
    return meaning.Decoder(
        layers=tuple(_layer(part) for part in parts),
        norm=base.norm.weight.detach(),
        epsilon=norm_epsilon(base.norm),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scaling=attention.scaling,
        head=None if head is None else linear_of(head),
    )


def _layer(part: LayerParts) -> meaning.DecoderLayer:
    q, k, v, o, gate, up, down = (linear_of(linear) for linear in part.linears())
    return meaning.DecoderLayer(
        input_norm=part.layer.input_layernorm.weight.detach(),
        q=q,
        k=k,
        v=v,
        q_norm=_norm(part.attention, "q_norm"),
        k_norm=_norm(part.attention, "k_norm"),
        o=o,
        post_norm=part.layer.post_attention_layernorm.weight.detach(),
        gate=gate,
        up=up,
        down=down,
        activation=part.activation,
        window=part.window,
    )


def _norm(attention: Any, name: str) -> Tensor | None:
    norm = getattr(attention, name, None)
    return None if norm is None else norm.weight.detach()


def linear_of(module: Any) -> meaning.Linear:
    """An `nn.Linear` or `Int8Linear` as the kernels take it."""
    bias = None if module.bias is None else module.bias.detach()
    weight = module.weight.detach()
    if not isinstance(module, Int8Linear):
        return meaning.Linear(weight=weight, bias=bias)
    return meaning.Linear(
        weight=weight,
        absmax=module.SCB,
        threshold=module._threshold_code,
        bias=bias,
        outlier_cols=module.outlier_cols,
        weight_low=module.weight_low,
    )


def native_runner(decoder: meaning.Decoder) -> Runner:
    """The kernels' runner. Raises NotCoveredError where there are none, or a tensor does not suit them."""
    native = engine()
    if native is None:
        raise NotCoveredError("no kernels are in use here, see llmint8 doctor")
    try:
        return NativeDecoder(decoder, native)
    except InputError as error:
        raise NotCoveredError(str(error)) from error
