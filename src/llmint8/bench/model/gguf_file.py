"""A GGUF of a Llama in Q8_0, made of the same float weights as every other candidate: what llama.cpp reads.

Names, order of rows and metadata are those that llama.cpp's own conversion gives a model of this kind. Tokens
stay numbers: the file holds no vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from llmint8.checkpoint import read_json, shard_files
from llmint8.errors import LLMInt8Error

_ARCHITECTURE = "llama"
#: Values that share a scale in Q8_0.
_BLOCK = 32
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(folder: Path, file: Path) -> None:
    """Write the Llama of a folder that holds float safetensors as Q8_0.

    Raises LLMInt8Error for another kind of model, rows that are no whole blocks, or without the package gguf.
    """
    config = read_json(folder / "config.json")
    reason = _not_covered(config)
    if reason is None and importlib.util.find_spec("gguf") is None:
        reason = "the package gguf, which writes its file, is not installed"
    if reason is not None:
        raise LLMInt8Error(reason)
    import gguf

    writer = gguf.GGUFWriter(file, _ARCHITECTURE)
    try:
        _metadata(writer, config)
        for name, tensor in _tensors(folder, config):
            kind = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _not_covered(config: dict[str, Any]) -> str | None:
    """Why there is no GGUF of a model, or None."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config.get("model_type") != "llama":
        return f"a GGUF is written of Llama models alone, and this is {config.get('model_type')!r}"
    if config.get("attention_bias") or config.get("mlp_bias") or config.get("hidden_act", "silu") != "silu":
        return "a GGUF is written of Llama models without biases and with SiLU alone"
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return "a GGUF is written of models with plain rotary positions alone"
    if config["hidden_size"] % _BLOCK or config["intermediate_size"] % _BLOCK:
        return f"Q8_0 needs rows of a multiple of {_BLOCK} values"
    return None


def _metadata(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _head_dim(config: dict[str, Any]) -> int:
    given: int | None = config.get("head_dim")
    return given or config["hidden_size"] // config["num_attention_heads"]


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """llama.cpp's name of each tensor, and its values in float32, in the order of rows that it expects."""
    heads = config["num_attention_heads"]
    halves = {"attn_q": heads, "attn_k": config.get("num_key_value_heads") or heads}
    for file in shard_files(folder):
        with safe_open(str(file), framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                name = _name(key)
                values = handle.get_tensor(key).float().numpy()
                part = name.split(".")[-2]
                if part in halves:
                    # llama.cpp rotates neighbouring values, transformers those half a head apart.
                    parts = values.reshape(halves[part], 2, -1, values.shape[1])
                    values = parts.swapaxes(1, 2).reshape(values.shape)
                if name != "output.weight" or not config.get("tie_word_embeddings"):
                    yield name, values


def _name(key: str) -> str:
    module = key.removesuffix(".weight")
    if module in _TOP:
        return f"{_TOP[module]}.weight"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_LAYER[inner]}.weight"
