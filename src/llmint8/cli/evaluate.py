"""`llmint8 eval`: perplexity of an int8 model, and how far it is from the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from llmint8.cli.models import find_float_model, find_model, load_float, load_int8, load_tokenizer
from llmint8.cli.options import Dtype, DtypeOption, JsonOption, ModelArgument, ThresholdOption, examples
from llmint8.cli.output import note, print_json, progress, stdout, working
from llmint8.cli.text import context_length, first_tokens, read_text

NAME = "eval"
EPILOG = examples(
    "llmint8 eval smollm2 --against smollm2",
    "llmint8 eval ./my-model-int8 --against ./my-model --tokens 10000 --text book.txt",
    "llmint8 eval ./my-model --threshold auto --json",
)


def command(
    model: ModelArgument,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT_MODEL",
            help="The float model to compare with; it runs in float32.",
            show_default="no comparison",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="UTF-8 text to predict.", show_default="an extract of the Jargon File"
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="How much of the text, in tokens.")] = 2000,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a window.", show_default="512, or the model's limit"),
    ] = None,
    threshold: ThresholdOption = None,
    dtype: DtypeOption = Dtype.auto,
    json: JsonOption = False,
) -> None:
    """Measure the perplexity of an int8 model on a text; a float MODEL is quantised while it is read.

    The text is cut into windows that share no token; each starts afresh, and its first token is not scored.
    With --against also: the mean KL divergence of the next-token distributions, float from int8, in nats, and
    the share of positions at which both prefer the same token.
    """
    from llmint8.analysis import evaluate

    found = find_model(model)
    reference = None if against is None else find_float_model(against, "--against")
    name, content = read_text(text)
    with working(f"Loading {model}"):
        tokenizer = load_tokenizer(found.path)
        models = {"int8": load_int8(found, threshold, dtype)}
        if reference is not None:
            models["float"] = load_float(reference, Dtype.float32)
    length = context_length(models["int8"], context)
    ids = first_tokens(tokenizer, content, tokens)
    if len(ids) < tokens:
        note(f"the text holds {len(ids)} tokens, fewer than the {tokens} asked for; all of it is used")
    with progress("Evaluating") as step:
        callables = {key: logits_of(value) for key, value in models.items()}
        scores = evaluate(callables, ids, length, "float" if against else None, step)
    int8 = scores["int8"]
    result: dict[str, Any] = {
        "model": model,
        "against": against,
        "text": name,
        "tokens": len(ids),
        "context": length,
        "scored": int8.scored,
        "threshold": threshold_of(models["int8"]),
        "perplexity": int8.perplexity,
        "float_perplexity": scores["float"].perplexity if against else None,
        "kl": int8.kl,
        "top1_agreement": int8.top1,
    }
    print_json(result) if json else stdout().print(_table(result))


def logits_of(model: Any) -> Any:
    """A model as `analysis.evaluate` calls it."""
    import torch

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = model(ids, use_cache=False).logits
        return output

    return logits


def threshold_of(model: Any) -> float | str:
    """The threshold of the first int8 layer."""
    from llmint8.nn import Int8Linear

    return next(m.threshold for m in model.modules() if isinstance(m, Int8Linear))


def _table(result: dict[str, Any]) -> Table:
    title = escape(f"{result['model']} on {result['text']}")
    table = Table("", "value", title=title, title_justify="left", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("threshold", str(result["threshold"]))
    table.add_row(
        "tokens", f"{result['tokens']:,} in windows of {result['context']}, {result['scored']:,} scored"
    )
    table.add_row("perplexity, int8", f"{result['perplexity']:.4f}")
    if result["against"]:
        change = result["perplexity"] / result["float_perplexity"] - 1
        table.add_row("perplexity, float", f"{result['float_perplexity']:.4f}")
        table.add_row("change", f"{change:+.2%}")
        table.add_row("KL divergence, nats", f"{result['kl']:.5f}")
        table.add_row("same first choice", f"{result['top1_agreement']:.2%}")
    return table
