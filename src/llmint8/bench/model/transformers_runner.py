"""Models of transformers: floats, int8 of other libraries, and ours with its own forward or the fast path."""

from __future__ import annotations

import time
from typing import Any

import accelerate  # noqa: F401 - what transformers would import while it loads a model
import torch
import transformers

from llmint8.bench.model.generation import Generation
from llmint8.convert import quantize_model
from llmint8.fast import optimize_for_inference


class TransformersRunner:
    """Generates greedily through `model.generate`.

    folder: the stored model. threads: of torch. dtype: of floats. int8: it is one of ours.
    fast: it takes the fast path. quantization_config: for another library that quantises while it loads.
    """

    def __init__(
        self,
        folder: str,
        threads: int,
        dtype: str,
        int8: bool = False,
        fast: bool = False,
        quantization_config: Any = None,
    ) -> None:
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._folder, self._dtype, self._fast = folder, getattr(torch, dtype), fast
        self._settings = {} if quantization_config is None else {"quantization_config": quantization_config}
        self._touch_libraries(int8)
        self._model: Any = None

    def load(self) -> None:
        """`from_pretrained`, and the fast path."""
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self._folder, dtype=self._dtype, **self._settings
        )
        self._model = self._ready(model)

    def generate(self, rows: list[list[int]], new_tokens: int) -> Generation:
        """Continue rows of token ids of one length."""
        return generate(self._model, rows, new_tokens)

    def _ready(self, model: Any) -> Any:
        model.eval().generation_config.eos_token_id = None  # every row writes as many tokens
        return optimize_for_inference(model) if self._fast else model

    def _touch_libraries(self, int8: bool) -> None:
        """Run a toy, so that what libraries import, start and touch when first used is there already."""
        config = transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=0,
        )
        toy = transformers.LlamaForCausalLM(config).to(self._dtype)
        if int8:
            quantize_model(toy)
        generate(self._ready(toy), [[1, 2]], 2)


def generate(model: Any, rows: list[list[int]], new_tokens: int) -> Generation:
    """Continue rows of token ids of one length, greedily, by a model of transformers that knows no end."""
    prompt = torch.tensor(rows)
    clock = _Clock()
    start = time.perf_counter()
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        streamer=clock,
    )
    times = clock.times[1:]  # the first call brings the prompt
    return Generation(times[0] - start, times[-1] - times[0], output[:, prompt.shape[1] :].tolist())


class _Clock:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        """The prompt, or a token of every row."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""
