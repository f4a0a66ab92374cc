"""`llmint8 eval`: an int8 model on a text or on tasks, and how far it is from the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from llmint8.cli.models import (
    find_float_model,
    find_model,
    load_float,
    load_int8,
    load_tokenizer,
    threshold_of,
)
from llmint8.cli.options import (
    Dtype,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ModuleThresholdOption,
    ThresholdOption,
    examples,
)
from llmint8.cli.output import note, print_json, progress, stdout, working
from llmint8.cli.tasks import Evaluated, answer_tasks
from llmint8.cli.text import bytes_of_tokens, context_length, first_tokens, read_text

NAME = "eval"
EPILOG = examples(
    "llmint8 eval smollm2 --against smollm2",
    "llmint8 eval ./my-model-int8 --against ./my-model --tokens 10000 --text book.txt",
    "llmint8 eval ./my-model --threshold auto --context 256 --stride 64 --json",
    "llmint8 eval smollm2 --against smollm2 --tasks lambada_openai,arc_easy --limit 200 --download",
    "llmint8 eval smollm2 --tasks my_task --include-path ./my-tasks --num-fewshot 2",
)
_DEFAULT_TOKENS = 2000
_TEXT, _TASKS = "Perplexity on a text", "Tasks of lm-eval"


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
    threshold: ThresholdOption = None,
    module_threshold: ModuleThresholdOption = None,
    dtype: DtypeOption = Dtype.auto,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Windows or prompts in one call. Changes speed and memory alone.")
    ] = 1,
    json: JsonOption = False,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="UTF-8 text to predict.",
            show_default="an extract of the Jargon File",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="How much of the text, in tokens.",
            show_default=str(_DEFAULT_TOKENS),
            rich_help_panel=_TEXT,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of a window.",
            show_default="512, or the model's limit",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens by which windows advance; only the new ones are scored.",
            show_default="the context: windows share no token",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Tasks, groups or patterns such as mmlu_*: answered instead of a text.",
            show_default=False,
            rich_help_panel=_TASKS,
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Task files (YAML) of your own.",
            show_default="those of lm-eval",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="The first documents of each task.", show_default="all", rich_help_panel=_TASKS
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Examples in a prompt.",
            show_default="as the task says",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="Fetch data sets that are not here yet.", rich_help_panel=_TASKS),
    ] = False,
) -> None:
    """Measure an int8 model on a text or on tasks; a float MODEL is quantised while it is read.

    On a text: perplexity by token and by byte. The text is cut into windows; each starts afresh, and its
    first token is not scored. With --against also: the mean KL divergence of the next-token distributions,
    float from int8, in nats, and the share of tokens for which both prefer the same one.

    With --tasks: each metric of lm-eval (pip install 'llmint8\\[eval]') with its standard error. With
    --against also: the difference from the float model on the same documents, its standard error, and whether
    it is within 1.96 of them.
    """
    wanted = Evaluated(model, against, threshold, module_threshold, dtype, batch_size, json)
    on_text = {"--text": text, "--tokens": tokens, "--context": context, "--stride": stride}
    on_tasks = {
        "--include-path": include_path,
        "--limit": limit,
        "--num-fewshot": num_fewshot,
        "--download": download or None,
    }
    _refuse(on_tasks if tasks is None else on_text, "needs" if tasks is None else "does not go with")
    if tasks is None:
        _read_text(wanted, text, tokens or _DEFAULT_TOKENS, context, stride)
    else:
        answer_tasks(wanted, tasks, include_path, limit, num_fewshot, download)


def logits_of(model: Any) -> Any:
    """A model as `analysis.evaluate` calls it."""
    import torch

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = model(ids, use_cache=False).logits
        return output

    return logits


def _refuse(options: dict[str, Any], problem: str) -> None:
    """An option that would do nothing is wrong usage."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{problem} --tasks", param_hint=name)


def _read_text(
    wanted: Evaluated, text: Path | None, tokens: int, context: int | None, stride: int | None
) -> None:
    from llmint8.analysis import evaluate

    found = find_model(wanted.model)
    reference = None if wanted.against is None else find_float_model(wanted.against, "--against")
    name, content = read_text(text)
    with working(f"Loading {wanted.model}"):
        tokenizer = load_tokenizer(found.path)
        models = {"int8": load_int8(found, wanted.threshold, wanted.dtype, wanted.module_threshold)}
        if reference is not None:
            models["float"] = load_float(reference, Dtype.float32)
    length = context_length(models["int8"], context)
    ids = first_tokens(tokenizer, content, tokens)
    if len(ids) < tokens:
        note(f"the text holds {len(ids)} tokens, fewer than the {tokens} asked for; all of it is used")
    counts = bytes_of_tokens(tokenizer, content, tokens)
    if counts is None:
        note("this tokenizer does not say which characters a token stands for: nothing is given by byte")
    with progress("Evaluating") as step:
        scores = evaluate(
            {key: logits_of(value) for key, value in models.items()},
            ids,
            length,
            "float" if reference else None,
            step,
            stride=stride,
            batch_size=wanted.batch_size,
            token_bytes=counts,
        )
    int8, original = scores["int8"], scores.get("float")
    result: dict[str, Any] = {
        "model": wanted.model,
        "against": wanted.against,
        "text": name,
        "tokens": len(ids),
        "context": length,
        "stride": stride or length,
        "scored": int8.scored,
        "scored_bytes": int8.scored_bytes,
        "threshold": threshold_of(models["int8"]),
        "perplexity": int8.perplexity,
        "bits_per_byte": int8.bits_per_byte,
        "byte_perplexity": int8.byte_perplexity,
        "float_perplexity": original.perplexity if original else None,
        "float_bits_per_byte": original.bits_per_byte if original else None,
        "float_byte_perplexity": original.byte_perplexity if original else None,
        "kl": int8.kl,
        "top1_agreement": int8.top1,
    }
    print_json(result) if wanted.json else stdout().print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    title = escape(f"{result['model']} on {result['text']}")
    table = Table("", "int8", title=title, title_justify="left", caption_justify="left")
    table.caption = (
        f"{result['tokens']:,} tokens in windows of {result['context']} that advance by {result['stride']}, "
        f"{result['scored']:,} scored. Threshold: {result['threshold']}."
    )
    table.columns[1].justify = "right"
    if result["against"]:
        table.add_column("float", justify="right")
        table.add_column("change", justify="right")
    for key, label, digits in (
        ("perplexity", "perplexity", 4),
        ("byte_perplexity", "  by byte", 5),
        ("bits_per_byte", "bits per byte", 5),
    ):
        value, base = result[key], result[f"float_{key}"]
        if value is not None:
            compared = [] if base is None else [f"{base:.{digits}f}", f"{value / base - 1:+.3%}"]
            table.add_row(label, f"{value:.{digits}f}", *compared)
    if result["against"]:
        table.add_row("KL divergence, nats", f"{result['kl']:.5f}")
        table.add_row("same first choice", f"{result['top1_agreement']:.2%}")
    return table
