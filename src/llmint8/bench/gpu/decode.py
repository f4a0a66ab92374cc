"""Decoding by a whole model with random weights, of the shape of Llama 3 8B: in 16 bits and in 8."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from llmint8.bench import peers
from llmint8.bench.timing import one_line
from llmint8.convert import quantize_model, replace_modules

_TIMINGS = 3


@dataclass(frozen=True)
class Llama:
    """The shape of a Llama; the defaults are those of 8 billion parameters."""

    hidden_size: int = 4096
    intermediate_size: int = 14_336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    vocab_size: int = 128_256


@dataclass(frozen=True)
class Decoding:
    """Seconds of a new token, a batch of so many; None where a form could not run, and the reason."""

    form: str
    batch: int
    compiled: bool
    seconds: float | None
    failure: str | None = None


def _build(shape: Llama, device: str) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**asdict(shape), max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _with_bitsandbytes(model: Any) -> None:
    """Replace the linear layers of the decoder by bitsandbytes'."""
    names = [name for name, module in model.model.named_modules() if isinstance(module, nn.Linear)]

    def build(_: str, module: nn.Module) -> nn.Module:
        weight: Any = module.weight
        return peers.build("bitsandbytes", weight.float(), 1)[0]

    replace_modules(model.model, names, build)


def _forms() -> dict[str, Callable[[Any], object]]:
    forms: dict[str, Callable[[Any], object]] = {"bfloat16": lambda model: model, "llmint8": quantize_model}
    if "bitsandbytes" in peers.installed():
        forms["bitsandbytes"] = _with_bitsandbytes
    return forms


def _generate(model: Any, ids: torch.Tensor, new: int, compiled: bool) -> float:
    """Seconds of a whole generation. compiled: a static cache, for which transformers compiles the decoder
    with `mode="reduce-overhead"`, that is as CUDA graphs, on a GPU."""
    cache = {"cache_implementation": "static"} if compiled else {}
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, **cache)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _token(model: Any, ids: torch.Tensor, new: int, compiled: bool) -> float:
    """Seconds of a token behind the first: the prompt is in both times and in none of the difference."""
    for _ in range(2):
        _generate(model, ids, new, compiled)
    long = statistics.median(_generate(model, ids, new, compiled) for _ in range(_TIMINGS))
    short = statistics.median(_generate(model, ids, 1, compiled) for _ in range(_TIMINGS))
    return (long - short) / (new - 1)


def time_decoding(
    device: str, shape: Llama, batches: list[int], new: int, step: Callable[[str], None]
) -> list[Decoding]:
    """Every form with every batch, call by call and compiled. step: called with what comes next.

    A form has the memory for itself: the models are built one after the other, from one seed.
    """
    found = []
    for form, convert in _forms().items():
        step(form)
        model = _build(shape, device)
        convert(model)
        for batch in batches:
            ids = torch.randint(0, shape.vocab_size, (batch, 32), device=device)
            for compiled in (False, True):
                try:
                    with torch.inference_mode():
                        seconds = _token(model, ids, new, compiled)
                    found.append(Decoding(form, batch, compiled, seconds))
                except Exception as error:  # a compiler's or another library's: it raises what it likes
                    found.append(Decoding(form, batch, compiled, None, one_line(error)))
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found
