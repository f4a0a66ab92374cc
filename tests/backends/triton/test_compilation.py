"""The kernels compile for GPUs that are not there: tensor cores multiply int8, and no register spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MULTIPLY = {"some_rows_kernel", "many_rows_kernel"}
OTHERS = {
    "digits_kernel",
    "codes_kernel",
    "list_kernel",
    "gather_kernel",
    "input_gradient_kernel",
    "optimizer_kernel",
}
#: The largest tile on Hopper spills where it multiplies high digits: less than a smaller tile costs there.
SPILLS = 512


def allowed_spills(target: str, kernel: dict) -> int:
    constants = kernel["constants"]
    largest = kernel["kernel"] == "many_rows_kernel" and constants["BLOCK_N"] == "128"
    return SPILLS if target == "cuda:90" and largest and constants["RULE"] != "0" else 0


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942"])
def test_compilation(target: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(program), target], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    few = set() if target.startswith("hip") else {"few_rows_kernel"}
    assert {kernel["kernel"] for kernel in kernels} == MULTIPLY | OTHERS | few
    for kernel in kernels:
        assert kernel["spills"] <= allowed_spills(target, kernel), kernel
        assert not kernel["too_early"], kernel
        assert kernel["multiplies"] == (kernel["kernel"] in MULTIPLY), kernel
