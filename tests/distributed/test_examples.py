"""The examples of docs/parallel.md, as a reader starts them: two processes under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import tiny
from distributed.ranks import needs_gloo
from llmint8 import Int8Linear

pytestmark = needs_gloo
PAGE = Path(__file__).parents[2] / "docs" / "parallel.md"


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs peft")
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    tiny.save_tiny_checkpoint(tmp_path / "my-model")
    # The second starts a process group, which the first one, run after it in the same processes, takes over.
    ends = 'open(f"{distributed.get_rank()} is done", "w")\ndistributed.destroy_process_group()\n'
    (tmp_path / "script.py").write_text("".join(reversed(blocks)) + ends)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"{rank} is done").exists() for rank in range(2))
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "my-model-int8")
    assert any(isinstance(module, Int8Linear) for module in saved.modules())
