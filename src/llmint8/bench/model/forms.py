"""The same weights in every form that a candidate loads, written once into a folder for the run."""

from __future__ import annotations

from pathlib import Path

from llmint8.bench.model.entries import Form
from llmint8.bench.model.gguf_file import write_gguf
from llmint8.checkpoint import read_json
from llmint8.config import Int8Config
from llmint8.streaming import convert_checkpoint


class Forms:
    """Makes forms of the float model in `folder`, each when first asked for, inside the folder `work`."""

    def __init__(self, folder: Path, work: Path) -> None:
        self._folder, self._work = folder, work
        config = read_json(folder / "config.json")
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        self._made: dict[Form, Path] = {}
        for dtype in ("float32", "bfloat16"):
            if stored == dtype:
                self._made[dtype] = folder

    def path(self, form: Form) -> Path:
        """Where a form lies. Raises LLMInt8Error if the model has none."""
        if form not in self._made:
            self._made[form] = self._make(form)
        return self._made[form]

    def _make(self, form: Form) -> Path:
        out = self._work / form.replace(" ", "-")
        if form in ("float32", "bfloat16"):
            _cast(self._folder, out, form)
        elif form == "gguf":
            out = out.with_suffix(".gguf")
            write_gguf(self._folder, out)
        else:
            whole = form == "int8 head"
            convert_checkpoint(
                self.path("bfloat16"),
                out,
                Int8Config(quantize_head=whole, quantize_embeddings=whole),
                format="bitsandbytes" if form == "bitsandbytes" else "llmint8",
            )
        return out


def _cast(folder: Path, out: Path, dtype: str) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(out)
