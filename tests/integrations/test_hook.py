"""Registration with transformers, whichever is imported first, and without it."""

import subprocess
import sys

import pytest

KNOWN = (
    "from transformers.quantizers import auto\n"
    "assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING['llmint8'].__name__ == 'Int8Config'\n"
    "assert auto.AUTO_QUANTIZER_MAPPING['llmint8'].__name__ == 'Int8HfQuantizer'\n"
)
PROGRAMS = {
    "llmint8 first": "import llmint8\n" + KNOWN,
    "transformers first": "import transformers.quantizers.auto, llmint8\n" + KNOWN,
    "the quantizer itself first": "import llmint8.integrations.transformers\n" + KNOWN,
    "no transformers": (
        "import sys\nsys.modules['transformers'] = None\nimport llmint8, torch\n"
        "llmint8.quantize_model(torch.nn.Sequential(torch.nn.Linear(3, 3)))\n"
    ),
    "transformers too old": (
        "import sys, warnings, llmint8\nsys.modules['transformers.core_model_loading'] = None\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    from llmint8.integrations import transformers_hook\n"
        "    transformers_hook._register()\n"
        "assert 'cannot load models through this version of transformers' in str(seen[-1].message), seen\n"
    ),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_programs(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
