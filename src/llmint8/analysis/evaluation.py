"""Perplexity on a text, and the divergence of one model's next-token distributions from another's.

All models are run on a batch of windows and scored at once, so that no logits but those of one batch exist;
the log-softmax runs in float64 on a few rows at a time. Every token weighs the same, whatever its window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmint8.analysis.windows import Window, check_row, plan_windows
from llmint8.errors import InputError

#: A model as this file sees it: token ids int64 `[B, L]` to logits `[B, L, V]` of any float type.
Logits = Callable[[Tensor], Tensor]
#: Rows of logits that exist as float64 at a time: 24 MiB for a vocabulary of 49,152.
_BLOCK = 64


@dataclass(frozen=True)
class Score:
    """How one model did on a text.

    scored: tokens that count. nll: their negative log-likelihood, summed, in nats.
    kl: mean over tokens of KL(reference ‖ model), in nats; top1: share of tokens for which both models prefer
    the same one. Both None without a reference.
    scored_bytes: of the UTF-8 text of the scored tokens. None if not known.
    """

    scored: int
    nll: float
    kl: float | None
    top1: float | None
    scored_bytes: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens)."""
        return math.exp(self.nll / self.scored)

    @property
    def bits_per_byte(self) -> float | None:
        """nll / (ln 2 · bytes): comparable between models whose tokens differ. None without bytes."""
        return self.nll / math.log(2) / self.scored_bytes if self.scored_bytes else None

    @property
    def byte_perplexity(self) -> float | None:
        """exp(nll / bytes), which is 2 to the power of bits_per_byte. None without bytes."""
        return math.exp(self.nll / self.scored_bytes) if self.scored_bytes else None


def evaluate(
    models: Mapping[str, Logits],
    ids: Tensor,
    context: int,
    reference: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    stride: int | None = None,
    batch_size: int = 1,
    token_bytes: Tensor | None = None,
) -> dict[str, Score]:
    """Score models on the same text.

    models: by name. ids: int64 `[T]`. context: tokens of a window; each window starts afresh, and its first
        token is not scored. reference: the name of the model that the others are compared with.
    progress: called with (windows done, windows in all).
    stride: tokens by which a window advances; only those that no window before it held are scored. None:
        context, windows that share no token.
    batch_size: windows that a model reads in one call. Sums are formed window by window in the order of the
        text, so that scores depend on it only as far as the model's logits do.
    token_bytes: int64 `[T]`, the bytes of UTF-8 that each token stands for.

    Raises InputError if the reference is none of the models, if vocabularies differ, if a model returns
    logits that are not finite, or for windows that cannot be (see `plan_windows`).
    """
    if reference is not None and reference not in models:
        raise InputError(f"the reference {reference!r} is none of the models {', '.join(models)}")
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1, got {batch_size}")
    if token_bytes is not None and token_bytes.shape != ids.shape:
        raise InputError(
            f"token_bytes must have one count for each token, {list(ids.shape)}, "
            f"got {list(token_bytes.shape)}"
        )
    check_row(ids)
    windows = plan_windows(len(ids), context, stride)
    totals = {name: _Totals() for name in models}
    done = 0
    for batch in _batches(windows, batch_size):
        inputs = torch.stack([ids[window.start : window.stop] for window in batch])
        base = None if reference is None else models[reference](inputs)
        for name, logits in models.items():
            own = base if base is not None and name == reference else logits(inputs)
            for row, window in enumerate(batch):
                # The logits at a position predict the token after it.
                rows = slice(window.first - window.start - 1, -1)
                labels = ids[window.first : window.stop]
                totals[name].add(name, own[row, rows], labels, None if base is None else base[row, rows])
        done += len(batch)
        if progress is not None:
            progress(done, len(windows))
    counted = None
    if token_bytes is not None:
        counted = sum(int(token_bytes[window.first : window.stop].sum()) for window in windows)
    return {name: total.score(reference is not None, counted) for name, total in totals.items()}


def _batches(windows: list[Window], size: int) -> Iterator[list[Window]]:
    """Consecutive windows of one length: all but the last of a text have the same."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) == size or window.stop - window.start != batch[0].stop - batch[0].start):
            yield batch
            batch = []
        batch.append(window)
    yield batch


@dataclass
class _Totals:
    scored: int = 0
    nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0

    def add(self, name: str, logits: Tensor, labels: Tensor, base: Tensor | None) -> None:
        """Count one window: logits `[L, V]`, the tokens that came `[L]`, the reference's logits."""
        if base is not None and base.shape != logits.shape:
            raise InputError(
                f"{name} has a vocabulary of {logits.shape[1]} tokens, the reference {base.shape[1]}: "
                "compare a model with the one that it was converted from"
            )
        for start in range(0, len(labels), _BLOCK):
            rows = slice(start, start + _BLOCK)
            log_p = logits[rows].double().log_softmax(-1)
            self.nll -= float(log_p.gather(1, labels[rows, None]).sum())
            if base is not None:
                log_r = base[rows].double().log_softmax(-1)
                self.kl += float((log_r.exp() * (log_r - log_p)).sum())
                self.agreed += int((log_r.argmax(-1) == log_p.argmax(-1)).sum())
        self.scored += len(labels)
        if not math.isfinite(self.nll) or not math.isfinite(self.kl):
            raise InputError(
                f"{name} returned logits that are not finite: its weights hold a NaN or overflow"
            )

    def score(self, compared: bool, scored_bytes: int | None) -> Score:
        """The means."""
        kl = self.kl / self.scored if compared else None
        top1 = self.agreed / self.scored if compared else None
        return Score(self.scored, self.nll, kl, top1, scored_bytes)
