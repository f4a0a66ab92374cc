"""Loading an int8 checkpoint with `from_pretrained`, against the time that reading its files takes.

    python benchmarks/loading.py
    python benchmarks/loading.py ./my-model-int8 --rounds 7

Without a folder a random Llama of 1.3 GB is written to the temporary folder first. Reading is `read()` of all
files into memory that is new to the process. Each load has a process of its own; memory is the most that it
takes beyond its libraries. Cold: the files are dropped from this system's page cache before (Linux alone; a
cache further down is out of reach).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llmint8 import Int8Config
from llmint8.bench.model.process import Worker
from llmint8.checkpoint import shard_files
from llmint8.numerics import CODE_MAX, ROW_MAJOR

MIB = 1 << 20


def write_random(folder: Path) -> None:
    """A checkpoint of 20 layers of a Llama with 2,048 hidden values, in random codes."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=20,
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tensors = {}
    for name, tensor in model.named_parameters():
        if "_proj." in name:
            layer = name.removesuffix("weight")
            tensors[name] = torch.randint(-CODE_MAX, CODE_MAX + 1, tensor.shape, dtype=torch.int8)
            tensors[layer + "SCB"] = torch.ones(len(tensor))
            tensors[layer + "weight_format"] = torch.tensor(ROW_MAJOR, dtype=torch.uint8)
        else:
            tensors[name] = torch.ones(tensor.shape, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {**config.to_dict(), "quantization_config": Int8Config().to_dict()}
    (folder / "config.json").write_text(json.dumps(settings))


def read(files: list[Path]) -> float:
    """Seconds to read the files."""
    start = time.perf_counter()
    for file in files:
        size, done = file.stat().st_size, 0
        target = memoryview(bytearray(size))
        with file.open("rb", buffering=0) as stream:
            while done < size:
                done += stream.readinto(target[done : done + 64 * MIB])
    return time.perf_counter() - start


def drop(files: list[Path]) -> None:
    """Let the system forget what it has cached of the files."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder: Path, cold: list[Path]) -> tuple[float, int]:
    """Seconds of `from_pretrained`, and the bytes that it took at most. cold: files to drop before."""
    with Worker("llmint8", str(folder), torch.get_num_threads()) as worker:
        drop(cold)
        answer = worker.ask({})
    return answer["seconds"], answer["peak_bytes"] or 0


def measure(folder: Path, rounds: int) -> None:
    files = shard_files(folder)
    size = sum(file.stat().st_size for file in files)
    print(f"{folder.name}: {size / MIB:,.0f} MiB")
    for kind, cold in (("warm", []), ("cold", files)):
        reads, loads = [], []
        for _ in range(rounds):
            drop(cold)
            reads.append(read(files))
            loads.append(load(folder, cold))
        reading = statistics.median(reads)
        loading = statistics.median(seconds for seconds, _ in loads)
        memory = max(nbytes for _, nbytes in loads)
        print(
            f"{kind}: read {reading:.2f} s, from_pretrained {loading:.2f} s, "
            f"ratio {loading / reading:.2f}, memory {memory / MIB:,.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="an int8 checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.folder is not None:
        measure(given.folder, given.rounds)
        return
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "random-llama"
        folder.mkdir()
        write_random(folder)
        measure(folder, given.rounds)


if __name__ == "__main__":
    main()
