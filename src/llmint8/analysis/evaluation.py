"""Perplexity on a text, and the divergence of one model's next-token distributions from another's.

All models are run window by window and scored at once, so that no logits but those of one window exist;
the log-softmax runs in float64 on a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from llmint8.errors import InputError

#: A model as this file sees it: token ids int64 `[1, L]` to logits `[1, L, V]` of any float type.
Logits = Callable[[Tensor], Tensor]
#: Rows of logits that exist as float64 at a time: 24 MiB for a vocabulary of 49,152.
_BLOCK = 64


@dataclass(frozen=True)
class Score:
    """How one model did on a text.

    scored: positions that count. perplexity: exp of the mean negative log-likelihood, in nats.
    kl: mean over positions of KL(reference ‖ model), in nats; top1: share of positions at which both models
    prefer the same token. Both None without a reference.
    """

    scored: int
    perplexity: float
    kl: float | None
    top1: float | None


def split_windows(ids: Tensor, context: int) -> list[Tensor]:
    """Cut token ids int64 `[T]` into consecutive windows `[1, <= context]` that share no token.

    Raises InputError for fewer than 2 tokens or a context below 2: nothing could be predicted.
    """
    if context < 2:
        raise InputError(f"the context must be at least 2 tokens, got {context}")
    if ids.dim() != 1 or len(ids) < 2:
        raise InputError(f"an evaluation needs at least 2 tokens [T], got {list(ids.shape)}; give more text")
    windows = [window.unsqueeze(0) for window in ids.split(context)]
    # One token left over predicts nothing.
    return windows if windows[-1].shape[1] > 1 else windows[:-1]


def evaluate(
    models: Mapping[str, Logits],
    ids: Tensor,
    context: int,
    reference: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Score]:
    """Score models on the same text.

    models: by name. ids: int64 `[T]`. context: tokens of a window; each window starts afresh, and its first
        token is not scored. reference: the name of the model that the others are compared with.
    progress: called with (windows done, windows in all).

    Raises InputError if the reference is none of the models, if vocabularies differ, or if a model returns
    logits that are not finite.
    """
    if reference is not None and reference not in models:
        raise InputError(f"the reference {reference!r} is none of the models {', '.join(models)}")
    windows = split_windows(ids, context)
    totals = {name: _Totals() for name in models}
    for done, window in enumerate(windows, 1):
        base = None if reference is None else models[reference](window)[0, :-1]
        for name, logits in models.items():
            own = base if base is not None and name == reference else logits(window)[0, :-1]
            totals[name].add(name, own, window[0, 1:], base)
        if progress is not None:
            progress(done, len(windows))
    return {name: total.score(reference is not None) for name, total in totals.items()}


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

    def score(self, compared: bool) -> Score:
        kl = self.kl / self.scored if compared else None
        top1 = self.agreed / self.scored if compared else None
        return Score(self.scored, math.exp(self.nll / self.scored), kl, top1)
