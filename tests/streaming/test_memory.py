"""The memory of a conversion: that of a block, whatever the size of the model."""

from __future__ import annotations

import subprocess
import sys

import torch

from llmint8.streaming.shard import Layout, Output, ShardWriter
from llmint8.streaming.source import BLOCK_BYTES
from tiny import tiny_llama

PROGRAM = """
import resource, sys
from llmint8 import convert_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

small, large, out = sys.argv[1:]
convert_checkpoint(small, out + "/small-int8")  # all imports, and the first use of all code
before = peak()
convert_checkpoint(large, out + "/large-int8")
print(peak() - before)
"""


def test_a_large_model_needs_a_few_blocks(float_folder, tmp_path):
    settings = {
        "hidden_size": 512,
        "intermediate_size": 9000,
        "vocab_size": 130_000,
        "num_hidden_layers": 1,
    }
    with torch.device("meta"):
        model = tiny_llama(**settings)
    layout = Layout([Output(key, t.dtype, tuple(t.shape)) for key, t in model.state_dict().items()])
    assert layout.size > 580_000_000
    (tmp_path / "large").mkdir()
    model.config.save_pretrained(tmp_path / "large")
    with ShardWriter(tmp_path / "large" / "model.safetensors", layout):
        pass  # a file of zeros, which takes no room on disk
    command = [sys.executable, "-c", PROGRAM, float_folder, tmp_path / "large", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A block as it is read, in float32, its magnitudes, scaled values, codes, and what the allocator keeps.
    assert int(done.stdout) < 12 * BLOCK_BYTES < layout.size / 2
