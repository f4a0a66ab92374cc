"""Writes bitsandbytes_state.pt: a state of bitsandbytes' AdamW8bit, and what its next step does.

Run it where bitsandbytes is installed: python tests/optim/write_bitsandbytes_state.py
"""

from pathlib import Path

import bitsandbytes
import torch

SIZE = 17 * 256 + 8


def main() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(SIZE, dtype=torch.bfloat16))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        weight.grad = torch.randn(SIZE, dtype=torch.bfloat16)
        optimizer.step()
    saved = {"weight": weight.detach().clone(), "optimizer": optimizer.state_dict()}
    weight.grad = torch.randn(SIZE, dtype=torch.bfloat16)
    saved = torch.load(_stored(saved), weights_only=False) | {"gradient": weight.grad.clone()}
    optimizer.step()
    saved["next_weight"] = weight.detach().clone()
    torch.save(saved, Path(__file__).with_name("bitsandbytes_state.pt"))


def _stored(saved: dict) -> Path:
    """The state as it is on disk now, since the next step changes it in place."""
    path = Path(__file__).with_name("bitsandbytes_state.pt")
    torch.save(saved, path)
    return path


if __name__ == "__main__":
    main()
