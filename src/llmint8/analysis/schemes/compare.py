"""Schemes side by side on one text: how good each is, what it keeps at 16 bits, what it weighs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llmint8.analysis.evaluation import Logits, Score, evaluate
from llmint8.analysis.schemes.apply import Usage, applied, linear_layers
from llmint8.analysis.schemes.scheme import Layer, Scheme
from llmint8.analysis.schemes.uniform import Float
from llmint8.analysis.windows import split_windows
from llmint8.errors import InputError

_REFERENCE = Float.name
#: A layer is crowded if more than this share of its columns are outliers, on average over the windows.
CROWDED = 0.5


@dataclass(frozen=True)
class Comparison:
    """How one scheme did. usage: by layer. weight_bytes: of all layers."""

    scheme: Scheme
    score: Score
    usage: dict[str, Usage]
    weight_bytes: int

    @property
    def kept_values(self) -> float:
        """Share of the activations that were not reduced to 8 bits, within [0, 1]."""
        return _share((u.kept_values, u.values) for u in self.usage.values())

    @property
    def kept_columns(self) -> float:
        """Share of the columns of a call that held such an activation, within [0, 1]."""
        return _share((u.kept_columns, u.columns) for u in self.usage.values())

    def crowded(self) -> dict[str, float]:
        """Layers where most columns were outliers, with the share of columns; the worst first.

        Empty for a scheme that keeps everything.
        """
        if self.kept_values == 1:
            return {}
        shares = {name: u.kept_columns / u.columns for name, u in self.usage.items() if u.columns}
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        return {name: share for name, share in ranked if share > CROWDED}


def compare_schemes(
    model: nn.Module,
    names: Iterable[str],
    schemes: Sequence[Scheme],
    logits: Logits,
    ids: Tensor,
    context: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Comparison]:
    """Score schemes on a text, each against the float model.

    model: float, unchanged afterwards. names: of its layers, see `linear_layers`.
    logits: calls the model, token ids int64 `[1, L]` to `[1, L, V]`.
    ids: int64 `[T]`, cut into windows of `context` tokens, one of which is a batch.
    progress: called with (forward passes done, forward passes in all).

    Returns one Comparison for each scheme, in their order.
    Raises InputError for no scheme, for names of no float linear layer, or for logits that are not finite.
    """
    names = tuple(names)
    layers = linear_layers(model, names)
    if not schemes or not layers:
        raise InputError("a comparison needs at least one scheme and one layer")
    totals: dict[str, dict[str, Usage]] = {scheme.name: {} for scheme in schemes}
    passes = len(split_windows(ids, context)) * (1 + sum(s.name != _REFERENCE for s in schemes))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, passes)

    def float_logits(window: Tensor) -> Tensor:
        result = logits(window)
        step()
        return result

    def of(scheme: Scheme) -> Logits:
        def scheme_logits(window: Tensor) -> Tensor:
            with applied(model, names, scheme, totals[scheme.name]):
                result = logits(window)
            step()
            return result

        return scheme_logits

    models = {scheme.name: of(scheme) for scheme in schemes if scheme.name != _REFERENCE}
    scores = evaluate({_REFERENCE: float_logits, **models}, ids, context, _REFERENCE)
    return [
        Comparison(
            scheme,
            scores[scheme.name],
            totals[scheme.name],
            _stored_bytes(scheme, layers, totals[scheme.name]),
        )
        for scheme in schemes
    ]


def _stored_bytes(scheme: Scheme, layers: Mapping[str, list[Layer]], usage: Mapping[str, Usage]) -> int:
    kept = {name: usage[name].columns_ever if name in usage else 0 for name in layers}
    return sum(scheme.stored_bytes(layer, kept[name]) for name, parts in layers.items() for layer in parts)


def _share(parts: Iterable[tuple[int, int]]) -> float:
    """The share of the first numbers in the second; the float model, which is not counted, keeps all."""
    counted = list(parts)
    if not counted:
        return 1.0
    return sum(kept for kept, _ in counted) / sum(total for _, total in counted)
