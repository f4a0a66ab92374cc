"""A tiny random model of each architecture that users ask for, with an input that it takes.

`ZOO` maps a name to a `Kind`; sizes are a multiple of nothing that a kernel might like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from torch import Tensor

VOCABULARY = 67
TOKENS = torch.arange(11)[None] % VOCABULARY
#: As most configurations call the sizes of a decoder.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}


@dataclass(frozen=True)
class Kind:
    """A model class, the settings of a tiny one, an input, and what of its linear layers stays float."""

    model: Any
    settings: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]] = lambda: {"input_ids": TOKENS}
    #: Last parts of the names of linear layers that the README lists as float: heads, and what is no layer.
    floats: set[str] = field(default_factory=lambda: {"lm_head"})

    def build(self) -> Any:
        """The model, in evaluation mode; the same at each call."""
        torch.manual_seed(0)
        config = self.model.config_class(**self.settings)
        return self.model(config).eval()


def pixels() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def sound() -> dict[str, Tensor]:
    features = torch.randn(1, 8, 24, generator=torch.Generator().manual_seed(1))
    return {"input_features": features, "decoder_input_ids": TOKENS}


WHISPER = {
    "vocab_size": VOCABULARY,
    "num_mel_bins": 8,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_source_positions": 12,
    "max_target_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
CLIP = {"text_config": {**SIZES, "projection_dim": 24}, "vision_config": VISION, "projection_dim": 24}

ZOO = {
    "opt": Kind(
        tf.OPTForCausalLM,
        {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 16},
    ),
    "bloom": Kind(
        tf.BloomForCausalLM, {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    ),
    "gpt2": Kind(
        tf.GPT2LMHeadModel,
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": Kind(tf.GPTNeoXForCausalLM, SIZES),
    "llama": Kind(tf.LlamaForCausalLM, GROUPED),
    "qwen2": Kind(tf.Qwen2ForCausalLM, GROUPED),
    "qwen3": Kind(tf.Qwen3ForCausalLM, GROUPED),
    "gemma3": Kind(tf.Gemma3ForCausalLM, {**GROUPED, "sliding_window": 4}),
    "mistral": Kind(tf.MistralForCausalLM, GROUPED),
    "mixtral": Kind(tf.MixtralForCausalLM, {**GROUPED, "num_local_experts": 4}),
    "qwen3_moe": Kind(
        tf.Qwen3MoeForCausalLM,
        {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gpt_oss": Kind(
        tf.GptOssForCausalLM,
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    # Experts that are stored under the names of linear layers.
    "granite_moe": Kind(
        tf.GraniteMoeForCausalLM, {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "mamba": Kind(
        tf.MambaForCausalLM,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        floats={"lm_head", "dt_proj"},
    ),
    "falcon": Kind(tf.FalconForCausalLM, {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "phi": Kind(tf.PhiForCausalLM, SIZES),
    "t5": Kind(
        tf.T5ForConditionalGeneration, T5, lambda: {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5]}
    ),
    "bert": Kind(tf.BertForSequenceClassification, SIZES, floats={"classifier"}),
    "vit": Kind(
        tf.ViTForImageClassification, VISION, lambda: {"pixel_values": pixels()}, floats={"classifier"}
    ),
    "whisper": Kind(tf.WhisperForConditionalGeneration, WHISPER, sound, floats={"proj_out"}),
    "clip": Kind(tf.CLIPModel, CLIP, lambda: {"input_ids": TOKENS, "pixel_values": pixels()}, floats=set()),
}
