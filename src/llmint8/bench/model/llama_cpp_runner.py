"""llama.cpp, called through the thin C interface of llama-cpp-python: no Python between its own parts."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from llmint8.bench.model.generation import Generation
from llmint8.errors import LLMInt8Error

#: Tokens of one call, its own default.
_BATCH_TOKENS = 2048


class LlamaCppRunner:
    """Generates greedily with a GGUF. file: its path. threads: for prompts and for single tokens."""

    def __init__(self, file: str, threads: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library calls it
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._file, self._threads = file, threads
        self._model: Any = None
        self._context: Any = None
        self._vocabulary = 0

    def load(self) -> None:
        """Read the file. Raises LLMInt8Error if llama.cpp refuses it."""
        model = self._api.llama_model_load_from_file(
            self._file.encode(), self._api.llama_model_default_params()
        )
        if not model:
            raise LLMInt8Error(f"llama.cpp does not load {self._file}")
        self._model = model
        self._vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(model))

    def generate(self, rows: list[list[int]], new_tokens: int) -> Generation:
        """Continue rows of token ids of one length, in a context made for them before the clock runs."""
        api, count, length = self._api, len(rows), len(rows[0])
        self._renew_context(count, length + new_tokens)
        batch = api.llama_batch_init(max(_BATCH_TOKENS, count), 0, 1)
        try:
            start = time.perf_counter()
            for first in range(0, length, _BATCH_TOKENS // count):
                self._decode(
                    batch, [row[first : first + _BATCH_TOKENS // count] for row in rows], first, length
                )
            tokens = [[token] for token in self._best(batch, count)]
            first_at = time.perf_counter()
            for position in range(length, length + new_tokens - 1):
                self._decode(batch, [row[-1:] for row in tokens], position, position + 1)
                for row, token in zip(tokens, self._best(batch, count), strict=True):
                    row.append(token)
            end = time.perf_counter()
        finally:
            api.llama_batch_free(batch)
        return Generation(first_at - start, end - first_at, tokens)

    def _renew_context(self, sequences: int, length: int) -> None:
        api = self._api
        if self._context is not None:
            api.llama_free(self._context)
        settings = api.llama_context_default_params()
        settings.n_ctx = sequences * length
        settings.n_seq_max = sequences
        settings.n_batch = _BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = self._threads
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise LLMInt8Error(f"llama.cpp makes no context for {sequences} sequences of {length} tokens")

    def _decode(self, batch: Any, rows: list[list[int]], first: int, length: int) -> None:
        """Run tokens at positions from `first` on; what comes at the end of `length` tokens gets logits."""
        place = 0
        for sequence, row in enumerate(rows):
            for position, token in enumerate(row, first):
                batch.token[place] = token
                batch.pos[place] = position
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = position == length - 1
                place += 1
        batch.n_tokens = place
        code = self._api.llama_decode(self._context, batch)
        if code:
            raise LLMInt8Error(f"llama_decode returned {code}")

    def _best(self, batch: Any, count: int) -> list[int]:
        """The likeliest token of each sequence."""
        places = [place for place in range(batch.n_tokens) if batch.logits[place]]
        return [int(np.argmax(self._logits(place))) for place in places[:count]]

    def _logits(self, place: int) -> Any:
        values = self._api.llama_get_logits_ith(self._context, place)
        return np.ctypeslib.as_array(values, shape=(self._vocabulary,))
