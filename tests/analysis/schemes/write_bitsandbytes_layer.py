"""Writes bitsandbytes_layer.safetensors beside this file; run it where bitsandbytes is installed.

A layer without bias, float16 inputs, and what `Linear8bitLt` returns at threshold 6.0 on a CPU. In training
mode it multiplies floats there, so it is set to evaluation.
"""

from pathlib import Path

import bitsandbytes
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
x = (torch.randn(9, 48) * torch.where(torch.rand(9, 48) < 0.03, 8.0, 1.0)).half()
weight = (torch.randn(17, 48) * 0.1).half()
layer = bitsandbytes.nn.Linear8bitLt(48, 17, bias=False, has_fp16_weights=False, threshold=6.0)
layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), has_fp16_weights=False, requires_grad=False)
layer = layer.to("cpu").eval()
with torch.no_grad():
    y = layer(x)
file = Path(__file__).parent / "bitsandbytes_layer.safetensors"
save_file({"x": x, "weight": weight, "y": y}, file, {"bitsandbytes": bitsandbytes.__version__})
