"""`llmint8 finetune`: LoRA adapters on a quantised model, from one text."""

from __future__ import annotations

import math
import time
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from llmint8.cli.files import check_file, new_folder, write_file
from llmint8.cli.finetune_picture import draw
from llmint8.cli.models import find_model, load_float, load_int8, load_tokenizer
from llmint8.cli.options import Dtype, DtypeOption, JsonOption, ModelArgument, examples
from llmint8.cli.output import print_json, progress, stdout, working
from llmint8.cli.quiet import quiet_transformers
from llmint8.cli.text import SAMPLE_NAME, read_text
from llmint8.errors import CheckpointError, LLMInt8Error, QuantizationError

if TYPE_CHECKING:
    from llmint8.checkpoint import CheckpointSummary

NAME = "finetune"
EPILOG = examples(
    "llmint8 finetune smollm2 ./adapter",
    "llmint8 finetune ./my-model ./adapter --text book.txt --steps 500 --plot loss.png",
    "llmint8 finetune ./my-model ./adapter --text book.txt --base nf4 --rank 16",
    "llmint8 finetune ./my-model-int8 ./adapter --text notes.txt --target q_proj --target v_proj",
)


class Base(str, Enum):
    """What the frozen weights are while adapters are trained."""

    int8 = "int8"
    nf4 = "nf4"
    fp4 = "fp4"
    float = "float"


def command(
    model: ModelArgument,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The folder to write the adapter to.", show_default=False),
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="UTF-8 text to learn; the last tenth is held back.", show_default=SAMPLE_NAME
        ),
    ] = None,
    base: Annotated[
        Base, typer.Option(help="What the frozen weights of MODEL become.", case_sensitive=False)
    ] = Base.int8,
    steps: Annotated[int, typer.Option(min=1, help="How often the adapter is changed.")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Pieces of text in a step.")] = 2,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a piece.")] = 128,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of AdamW, whose state has 8 bits.")] = 1e-3,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Modules with an adapter, by the last part of their name; may be repeated.",
            show_default="all linear ones but the head",
        ),
    ] = None,
    dtype: DtypeOption = Dtype.float32,
    seed: Annotated[int, typer.Option(help="Of the adapters' first values and the order of the text.")] = 0,
    json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw the losses.", show_default=False)
    ] = None,
) -> None:
    """Train LoRA adapters on MODEL, quantised, and save them in peft's format.

    The weights of MODEL do not change. The loss on the last tenth of the text, which is not learnt from, is
    taken before and after. OUT appears whole or not at all; it holds the adapter alone, and MODEL, float or
    quantised, takes it again through peft.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already; choose another folder, or remove it")
    if not out.absolute().parent.is_dir():
        raise CheckpointError(f"{out.parent} is no folder; create it first")
    if plot is not None:
        check_file(plot, "--plot", ".png")
        from llmint8.plotting import require_matplotlib

        require_matplotlib()
    quiet_transformers()
    try:
        from llmint8.integrations.finetuning import Settings, cut, train_adapter
    except ImportError as error:
        raise LLMInt8Error(f"adapters need peft ({error}); run: pip install 'llmint8[peft]'") from error
    found = find_model(model)
    name, content = read_text(text)
    ids = load_tokenizer(found.path)(content, return_tensors="pt", verbose=False)["input_ids"][0]
    pieces = cut(ids.long(), length)
    with working(f"Loading {model}"):
        frozen = _load(found, base, dtype)
    settings = Settings(steps, batch, rank, learning_rate, target or "all-linear", seed=seed)
    start = time.perf_counter()
    with progress("Training") as step, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers is not the user's affair
        training = train_adapter(frozen, pieces, settings, step)
    seconds = time.perf_counter() - start
    with new_folder(out) as folder:
        training.model.save_pretrained(folder, save_embedding_layers=False)
    if plot is not None:
        write_file(plot, draw({f"{base.value} base": training.losses}))
    trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    about = {
        "model": model,
        "base": base.value,
        "text": name,
        "pieces": [len(part) for part in pieces],
        "length": length,
        "steps": steps,
        "batch": batch,
        "rank": rank,
        "learning_rate": learning_rate,
        "trained_parameters": trained,
        "losses": training.losses,
        "held_back": {"before": training.before, "after": training.after},
        "seconds": seconds,
        "out": str(out),
    }
    if json:
        print_json(about)
    else:
        _show(about)


def _load(found: CheckpointSummary, base: Base, dtype: Dtype) -> Any:
    from llmint8.convert import quantize_model_4bit

    if base is Base.int8:
        return load_int8(found, None, dtype)
    if found.quantization is not None:
        raise QuantizationError(f"{found.path} is int8 already; --base {base.value} takes the float model")
    model = load_float(found, dtype)
    if base is not Base.float:
        quantize_model_4bit(model, base.value)
    return model


def _show(about: dict[str, Any]) -> None:
    table = Table(
        "", "before", "after", title=f"{about['steps']} steps on {about['text']}", title_justify="left"
    )
    held = about["held_back"]
    table.add_row("loss on held-back text, nats", f"{held['before']:.3f}", f"{held['after']:.3f}")
    table.add_row("perplexity there", *(f"{math.exp(held[k]):.2f}" for k in ("before", "after")))
    console = stdout()
    console.print(table)
    lines = (
        f"{about['trained_parameters']:,} parameters trained in {about['seconds']:.0f} s, "
        f"on {about['pieces'][0]} pieces of {about['length']} tokens",
        f"Written to {about['out']}",
        "Use it:",
        "  from peft import PeftModel",
        f"  model = PeftModel.from_pretrained(model, {about['out']!r})",
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
