"""The text of an evaluation, as token ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmint8.convert.outlier_columns import sample_text
from llmint8.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

#: What the shipped text is; src/llmint8/data/PROVENANCE.md says more.
SAMPLE_NAME = "Jargon File 4.4.7, extract"
#: Tokens of a window, unless the model takes fewer.
DEFAULT_CONTEXT = 512


def read_text(file: Path | None) -> tuple[str, str]:
    """The name and the content of a UTF-8 file, or of the shipped text. Raises InputError if unreadable."""
    if file is None:
        return SAMPLE_NAME, sample_text()
    try:
        return str(file), file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text ({error}); give a plain text file") from error


def first_tokens(tokenizer: Any, text: str, count: int) -> Tensor:
    """Up to `count` token ids of a text, int64 `[T]`. Raises InputError if there are fewer than 2."""
    ids: Tensor = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0][:count]
    if len(ids) < 2:
        raise InputError(
            f"the text holds {len(ids)} tokens, and an evaluation needs at least 2; give more text"
        )
    return ids.long()


def bytes_of_tokens(tokenizer: Any, text: str, count: int) -> Tensor | None:
    """The bytes of UTF-8 that each of the first `count` tokens of a text stands for, int64 `[T]`.

    None for a tokenizer that does not say which characters a token stands for (those in plain Python).
    """
    from llmint8.analysis.token_bytes import token_bytes

    if not tokenizer.is_fast:
        return None
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return token_bytes(text, offsets[:count])


def context_length(model: Any, wanted: int | None) -> int:
    """Tokens of a window: what was wanted, or 512, or as many as the model takes.

    Raises InputError if more are wanted than the model takes.
    """
    limit: int = getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT
    if wanted is not None and wanted > limit:
        raise InputError(
            f"--context {wanted} exceeds the {limit} positions of the model; give at most {limit}"
        )
    return wanted or min(DEFAULT_CONTEXT, limit)
