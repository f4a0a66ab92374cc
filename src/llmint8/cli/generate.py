"""`llmint8 generate`: continue a prompt, token by token."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from llmint8.cli.models import find_model, load_int8, load_tokenizer
from llmint8.cli.options import (
    Dtype,
    DtypeOption,
    ModelArgument,
    ModuleThresholdOption,
    ThresholdOption,
    examples,
)
from llmint8.cli.output import note, working
from llmint8.cli.quiet import quiet_transformers
from llmint8.cli.streaming import Speed, TokenClock
from llmint8.errors import InputError

NAME = "generate"
EPILOG = examples(
    'llmint8 generate smollm2 "Computers were invented to"',
    'llmint8 generate ./my-model "Once upon a time" --threshold auto --max-new-tokens 200',
    'llmint8 generate ./my-model-int8 "Dear Sir," --temperature 0.8 --seed 7',
)


class Head(str, Enum):
    """What becomes of the output head."""

    exact = "exact"
    int8 = "int8"


def command(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    threshold: ThresholdOption = None,
    module_threshold: ModuleThresholdOption = None,
    dtype: DtypeOption = Dtype.auto,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token; above, tokens are drawn at random.")
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Makes random draws repeatable.", show_default="another each time"),
    ] = None,
    head: Annotated[
        Head, typer.Option(help="The output head: exact as the model has it, int8 is smaller and faster.")
    ] = Head.exact,
    optimize: Annotated[
        bool, typer.Option(help="Run all layers in one call, where the model is a decoder like Llama's.")
    ] = True,
) -> None:
    """Continue PROMPT with an int8 model; a float MODEL is quantised while it is read.

    The text goes to stdout as it is written, the speed to stderr at the end.
    """
    if head is Head.int8 and not optimize:
        raise typer.BadParameter("--head int8 is a part of the optimisation: leave out --no-optimize")
    if seed is not None and temperature == 0:
        raise typer.BadParameter("--seed needs --temperature above 0: nothing is drawn at random otherwise")
    found = find_model(model)
    with working(f"Loading {model}"):
        tokenizer = load_tokenizer(found.path)
        loaded = load_int8(found, threshold, dtype, module_threshold)
        path = _optimize(loaded, head) if optimize else "the model's own forward"
    note(f"runs {path}")
    inputs = _encode(loaded, tokenizer, prompt, max_new_tokens)
    transformers = quiet_transformers()
    clock = TokenClock(transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    if seed is not None:
        transformers.set_seed(seed)
    loaded.generate(**inputs, **sampling, max_new_tokens=max_new_tokens, streamer=clock)
    _report(clock.speed())


def _optimize(model: Any, head: Head) -> str:
    """Give the model the fast path; returns what of it takes that."""
    from llmint8.fast import fast_path, optimize_for_inference

    optimize_for_inference(model, head="int8" if head is Head.int8 else "keep")
    return str(fast_path(model))


def _encode(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> dict[str, Any]:
    """The prompt as `generate` takes it. Raises InputError if it is empty or does not fit the model."""
    encoded = tokenizer(prompt, return_tensors="pt", verbose=False)
    count = encoded["input_ids"].shape[1]
    if count == 0:
        raise InputError("the prompt is empty; give some text to continue")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and count + new_tokens > limit:
        raise InputError(
            f"the prompt's {count} tokens and {new_tokens} new ones exceed the model's {limit} positions; "
            "shorten the prompt or lower --max-new-tokens"
        )
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def _report(speed: Speed) -> None:
    new = "" if speed.new_rate is None else f", {speed.new_rate:.1f} tokens/s"
    note(
        f"prompt: {speed.prompt_tokens} tokens, {speed.prompt_rate:.1f} tokens/s; "
        f"new: {speed.new_tokens} tokens{new}"
    )
