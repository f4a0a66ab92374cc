"""Time of one optimizer step, interleaved with its competitors, and how close 8 bits train to 32.

python benchmarks/optimizer.py speed [MILLIONS_OF_PARAMETERS]
python benchmarks/optimizer.py convergence

bitsandbytes takes part where it is installed.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llmint8 import optim

#: Elements of one tensor: that of a layer of 4,096 by 4,096.
TENSOR = 4096 * 4096
ROUNDS = 7


def candidates() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    made: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "llmint8 AdamW8bit": optim.AdamW8bit,
        "llmint8 AdamW": optim.AdamW,
        "torch AdamW": torch.optim.AdamW,
        "torch AdamW(fused=True)": lambda p: torch.optim.AdamW(p, fused=True),
        "torch AdamW(foreach=True)": lambda p: torch.optim.AdamW(p, foreach=True),
    }
    if importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes

        made["bitsandbytes AdamW8bit"] = bitsandbytes.optim.AdamW8bit
    return made


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = {id(v): v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)}
    return sum(v.nbytes for v in tensors.values())


def speed(parameters: int) -> None:
    """Medians; every candidate has weights, gradients and state of its own, and one step in each round."""
    for dtype in (torch.float32, torch.bfloat16):
        sizes = [TENSOR] * (parameters // TENSOR) + [parameters % TENSOR]
        optimizers, times = {}, {}
        for name, make in candidates().items():
            weights = [nn.Parameter((torch.randn(size) * 0.02).to(dtype)) for size in sizes]
            for weight in weights:
                weight.grad = (torch.randn(weight.shape) * 1e-3).to(dtype)
            optimizers[name], times[name] = make(weights), []
            optimizers[name].step()
        for _ in range(ROUNDS):
            for name, optimizer in optimizers.items():
                start = time.perf_counter()
                optimizer.step()
                times[name].append(time.perf_counter() - start)
        print(f"{parameters / 1e6:.0f} M parameters, {dtype}, {torch.get_num_threads()} threads")
        for name, taken in times.items():
            per = state_bytes(optimizers[name]) / parameters
            print(f"  {name:28} {statistics.median(taken) * 1e3:8.0f} ms   {per:5.2f} bytes of state each")


class Tiny(nn.Module):
    """A causal transformer over bytes: two layers of width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.layers(self.embedding(ids), mask=mask, is_causal=True))


def loss_after(make: Callable[[Any], torch.optim.Optimizer], text: torch.Tensor, steps: int = 300) -> float:
    """The mean loss of the last 20 steps."""
    torch.manual_seed(0)
    model, generator = Tiny(), torch.Generator().manual_seed(0)
    optimizer, losses = make(model.parameters()), []
    for _ in range(steps):
        at = torch.randint(len(text) - 65, (16, 1), generator=generator) + torch.arange(65)
        ids = text[at]
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.mean(losses[-20:])


#: Learning rates at which each of them trains this model well.
SETTINGS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 1e-3},
    "Adam": {"lr": 1e-3},
    "AdEMAMix": {"lr": 1e-3},
    "LAMB": {"lr": 1e-2},
    "Lion": {"lr": 2e-4},
    "SGD": {"lr": 0.1},
    "LARS": {"lr": 1.0},
    "RMSprop": {"lr": 1e-3},
    "Adagrad": {"lr": 2e-2},
}


def convergence(text: bytes) -> None:
    ids = torch.tensor(list(text))
    print("loss after 300 steps    32 bits   8 bits   difference")
    for name, settings in SETTINGS.items():
        want = loss_after(lambda p, n=name, s=settings: getattr(optim, n)(p, **s), ids)
        got = loss_after(
            lambda p, n=name, s=settings: getattr(optim, n + "8bit")(p, min_8bit_size=0, **s), ids
        )
        print(f"  {name:20} {want:9.4f} {got:8.4f} {got / want - 1:+10.2%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["convergence"]:
        from importlib.resources import files

        convergence((files("llmint8") / "data" / "jargon_file.txt").read_bytes())
    else:
        speed(int(float(sys.argv[2]) * 1e6) if len(sys.argv) > 2 else 100_000_000)
