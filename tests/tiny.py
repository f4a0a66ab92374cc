"""Tiny random models with a real tokenizer, built in a second and without any network.

`tiny_llama()` and the others are models in memory; `save_tiny_checkpoint(folder)` writes what
`from_pretrained` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

#: Ids of the tokens that are no bytes; the 256 bytes come before them.
BOS, EOS = 256, 257
VOCABULARY = 258


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: one token per byte of UTF-8, any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A random Llama of two layers, float32, in evaluation mode; `overrides` are LlamaConfig's fields."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "initializer_range": 0.3,  # logits far enough apart that a greedy token does not hang on rounding
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(settings | overrides))).eval()


def save_tiny_checkpoint(folder: str | Path, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny Llama and its tokenizer into `folder` for `from_pretrained`; return the folder."""
    tiny_llama(seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2 of two layers, whose linear layers are `Conv1D`."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


def tiny_classifier(seed: int = 0) -> BertForSequenceClassification:
    """A random BERT with a classification head."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval()


def tiny_t5(seed: int = 0) -> T5ForConditionalGeneration:
    """A random encoder-decoder with gated feed-forward layers."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=BOS,
    )
    return T5ForConditionalGeneration(config).eval()


def tiny_opt(seed: int = 0) -> OPTForCausalLM:
    """A random OPT with projections around the embedding; the head is tied."""
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        init_std=0.3,
    )
    return OPTForCausalLM(config).eval()


def tiny_mixture(seed: int = 0) -> MixtralForCausalLM:
    """A random mixture of experts, whose expert weights are fused into tensors of three dimensions."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config).eval()
