"""Triton's interpreter runs the GPU kernels where there is no GPU; Triton asks for it when it is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
