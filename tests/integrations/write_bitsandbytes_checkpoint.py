"""Write tests/integrations/bitsandbytes_checkpoint: a tiny Llama, as bitsandbytes 0.50 saves it in 8 bits.

Run it where bitsandbytes, transformers and accelerate are installed, from the root of the repository:

    PYTHONPATH=tests python tests/integrations/write_bitsandbytes_checkpoint.py

The tests read the result, so they need no bitsandbytes. `dequantised.safetensors` (in a folder of its own,
since it is no part of the model) is what bitsandbytes makes of each int8 weight.
"""

import tempfile
from pathlib import Path

import bitsandbytes
import torch
import transformers
from safetensors.torch import save_file

import tiny

FOLDER = Path(__file__).parent / "bitsandbytes_checkpoint"


def main() -> None:
    config = transformers.BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=3.0, llm_int8_skip_modules=["lm_head", "down_proj"]
    )
    with tempfile.TemporaryDirectory() as folder:
        tiny.tiny_llama(num_hidden_layers=1, intermediate_size=40).save_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map="cpu", dtype=torch.float16
        )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear8bitLt)}
    dequantise = bitsandbytes.functional.int8_vectorwise_dequant
    (FOLDER / "dequantised").mkdir(parents=True, exist_ok=True)
    save_file(
        {name: dequantise(m.weight.data, m.weight.SCB).contiguous() for name, m in layers.items()},
        FOLDER / "dequantised" / "dequantised.safetensors",
    )
    model.save_pretrained(FOLDER, max_shard_size="20KB")


if __name__ == "__main__":
    main()
