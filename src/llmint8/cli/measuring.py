"""The columns of the demo: one model in five forms, what they weigh, how good and how fast they are."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmint8.cli.evaluate import logits_of
from llmint8.cli.models import load_float
from llmint8.cli.options import Dtype
from llmint8.cli.streaming import Speed, TokenClock
from llmint8.config import Threshold

if TYPE_CHECKING:
    from torch import Tensor

    from llmint8.checkpoint import CheckpointSummary

#: Repetitions of each speed, after one that is thrown away.
REPETITIONS = 3
PROMPT_TOKENS = 512
NEW_TOKENS = 32


@dataclass(frozen=True)
class Form:
    """One form of the model. threshold: set before each use, as the int8 forms share their weights.

    model_bytes: all parameters and buffers. layer_bytes: the layers that int8 replaces.
    """

    name: str
    model: Any
    threshold: Threshold | None
    model_bytes: int
    layer_bytes: int

    def prepare(self) -> Any:
        """The model, with the threshold of this form."""
        if self.threshold is not None:
            from llmint8.convert import set_threshold

            set_threshold(self.model, self.threshold)
        return self.model

    def logits(self, ids: Tensor) -> Tensor:
        """Token ids `[1, L]` to logits `[1, L, V]`."""
        output: Tensor = logits_of(self.prepare())(ids)
        return output


def load_forms(found: CheckpointSummary) -> list[Form]:
    """float32, bfloat16, int8 with both outlier rules, and the head and the embedding int8 too.

    The int8 forms take the fast path; what int8 does not replace is float32 there.
    """
    from llmint8.convert import module_bytes, quantize_model
    from llmint8.fast import optimize_for_inference

    float32 = load_float(found, Dtype.float32)
    bfloat16 = load_float(found, Dtype.bfloat16)
    int8 = copy.deepcopy(float32)
    replaced = [row.name for row in quantize_model(int8).converted]
    whole = optimize_for_inference(copy.deepcopy(int8), head="int8")
    optimize_for_inference(int8)

    def form(name: str, model: Any, threshold: Threshold | None = None) -> Form:
        layers = sum(module_bytes(model.get_submodule(layer)) for layer in replaced)
        return Form(name, model, threshold, module_bytes(model), layers)

    return [
        form("float32", float32),
        form("bfloat16", bfloat16),
        form("int8, 6.0", int8, 6.0),
        form("int8, auto", int8, "auto"),
        form("+ int8 head", whole, "auto"),
    ]


def measure_speeds(
    forms: list[Form], prompt: Tensor, progress: Callable[[int, int], None]
) -> dict[str, tuple[float, float]]:
    """Median (prompt tokens/s, new tokens/s) of each form for a prompt `[1, T]`.

    The forms take turns, so that a slow moment of the machine meets all of them.
    """
    rates: dict[str, list[Speed]] = {form.name: [] for form in forms}
    turns = [form for _ in range(REPETITIONS + 1) for form in forms]
    for done, form in enumerate(turns, 1):
        rates[form.name].append(_generate(form.prepare(), prompt))
        progress(done, len(turns))
    return {
        name: (
            statistics.median(speed.prompt_rate for speed in speeds[1:]),
            statistics.median(speed.new_rate or 0.0 for speed in speeds[1:]),
        )
        for name, speeds in rates.items()
    }


def _generate(model: Any, prompt: Tensor) -> Speed:
    clock = TokenClock()
    model.generate(
        input_ids=prompt,
        attention_mask=prompt.new_ones(prompt.shape),
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        streamer=clock,
    )
    return clock.speed()
