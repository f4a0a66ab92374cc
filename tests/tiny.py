"""Tiny random models with a real tokenizer, built in a second and without any network.

`tiny_llama()` is a model in memory; `save_tiny_checkpoint(folder)` writes what `from_pretrained` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
