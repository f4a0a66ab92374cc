"""Compiles every launch of the GPU kernels for GPUs that are not there: `python compile_kernels.py cuda:90`.

The launches are those that the package makes for a few layers, recorded instead of run. Prints JSON: for each
launch the kernel's name, whether its tensor cores multiply int8, the registers that it spills, and whether it
touches memory before it has waited for the kernel in front of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile
from triton.runtime.jit import JITFunction

from llmint8.backends.triton import features
from llmint8.backends.triton.features import Features
from llmint8.backends.triton.gradient import input_gradient
from llmint8.backends.triton.linear import linear, quantize_rows
from llmint8.backends.triton.optimizer import norms, step
from llmint8.reference.blockwise import block_count
from llmint8.reference.optimizers import ADEMAMIX, RULES, Common

POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32", torch.uint8: "*u8",
    torch.float64: "*fp64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "launch_pdl")
#: The instruction that multiplies int8 matrices.
MULTIPLIES = {
    "cuda:80": r"mma\.sync\S*m16n8k32\S*\.s32\.s8\.s8\.s32",
    "cuda:90": r"wgmma\.mma_async\S*m64n\d+k32\.s32\.s8\.s8|mma\.sync\S*m16n8k32\S*\.s32\.s8\.s8\.s32",
    "cuda:100": r"tcgen05\.mma\S*kind::i8|mma\.sync\S*m16n8k32\S*\.s32\.s8\.s8\.s32",
    "hip:gfx942": r"v_mfma_i32_\d+x\d+x\d+",
    "hip:gfx90a": r"v_mfma_i32_\d+x\d+x\d+",
}


#: What the kernels may make use of; elsewhere a device is asked.
FEATURES = {
    "cuda:80": Features(True, False, False, processors=108),
    "cuda:90": Features(True, True, True, processors=132),
    "cuda:100": Features(True, True, False, processors=148),
    "hip:gfx90a": Features(None, False, False, processors=104),
    "hip:gfx942": Features(None, False, False, processors=304),
}


def launches() -> list[tuple[JITFunction, tuple, dict]]:
    """What the package launches, by kernel, arguments and constants; nothing runs."""
    found = []
    JITFunction.run = lambda self, *args, grid, warmup, **kwargs: found.append((self, args, kwargs))
    n, k, p = 4096, 4096, 32
    weight, absmax = torch.empty(n, k, dtype=torch.int8), torch.empty(n)
    low = torch.zeros(p, dtype=torch.int32), torch.empty(n, p, dtype=torch.int8)
    wide, wide_absmax = torch.empty(14_336, k, dtype=torch.int8), torch.empty(14_336)
    for m in (1, 4, 32, 64, 128, 4096):
        x = torch.empty(m, k, dtype=torch.bfloat16)
        linear(x, weight, absmax, None, 6.0)
        linear(x, wide, wide_absmax, None, 6.0)
    linear(torch.empty(1, 14_336), wide.T.contiguous(), absmax, None, -1.0)
    for m in (1, 16, 4096):
        linear(torch.empty(m, k), weight, absmax, absmax, 0.0)
        linear(torch.empty(m, k, dtype=torch.float16), weight, absmax, absmax, -1.0, *low)
    quantize_rows(torch.empty(4, k), -1.0)
    input_gradient(torch.empty(512, n, dtype=torch.bfloat16), weight, absmax)
    input_gradient(torch.empty(512, n), weight, absmax, *low)
    size = 100_000
    scale, p = torch.zeros(block_count(size)), torch.zeros(size, dtype=torch.bfloat16)
    for rule in RULES:
        count = len(rule.signed)
        step(
            rule, p, p, [torch.zeros(size, dtype=torch.uint8)] * count, [scale] * count,
            Common(0.1, 0.9, 0.01, 0.01), [0.5],
        )  # fmt: skip
    floats = torch.zeros(size)
    for run in (step, norms):
        run(ADEMAMIX, floats, floats, [floats] * 3, [None] * 3, Common(0.1), [0.5])
    return found


def build(function: JITFunction, args: tuple, kwargs: dict, target: GPUTarget):
    """The compiled kernel of a launch."""
    constants = {name: value for name, value in kwargs.items() if name not in OPTIONS}
    options = {name: value for name, value in kwargs.items() if name in OPTIONS}
    signature, attributes = dict.fromkeys(constants, "constexpr"), {}
    for index, (name, value) in enumerate(zip(function.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    signature = {name: signature[name] for name in function.arg_names}
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    return triton_compile(source, target=target, options=options)


def spills(kernel, target: GPUTarget) -> int:
    """Registers, or bytes, that do not fit."""
    if target.backend == "hip":
        return sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", kernel.asm["amdgcn"]))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(kernel.asm["ptx"])
        architecture = re.search(r"\.target (\S+)", kernel.asm["ptx"])[1].split(",")[0]
        command = [
            get_ptxas(target.arch).path,
            "-v",
            f"-arch={architecture}",
            str(source),
            "-o",
            str(source.with_suffix(".o")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr))


def too_early(ptx: str) -> bool:
    """Whether a kernel that may start early reads or writes memory before it waits."""
    before, wait, _ = ptx.partition("griddepcontrol.wait")
    return bool(wait) and bool(re.search(r"\b((ld|st)\.global|cp\.async|atom\.|red\.)", before))


def main() -> None:
    backend, architecture = sys.argv[1].split(":")
    warp = 64 if backend == "hip" else 32
    features._INTERPRETER = FEATURES[sys.argv[1]]
    target = GPUTarget(backend, int(architecture) if architecture.isdecimal() else architecture, warp)
    results = []
    for function, args, kwargs in launches():
        kernel = build(function, args, kwargs, target)
        text = kernel.asm["amdgcn" if backend == "hip" else "ptx"]
        assert ("griddepcontrol.wait" in text) == bool(kwargs.get("EARLY") and kwargs.get("launch_pdl"))
        multiplies = bool(re.search(MULTIPLIES[sys.argv[1]], text))
        results.append(
            {"kernel": function.__name__, "multiplies": multiplies, "spills": spills(kernel, target),
             "too_early": too_early(text),
             "constants": {name: str(value) for name, value in kwargs.items()}}
        )  # fmt: skip
    print(json.dumps(results))


if __name__ == "__main__":
    main()
