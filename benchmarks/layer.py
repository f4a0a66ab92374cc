"""One linear layer: llmint8 against torch, bitsandbytes and torchao, and against the limits of the machine.

    python benchmarks/layer.py
    python benchmarks/layer.py --shapes 4096x4096 --rows 1,16 --json layer.json

It is `llmint8 bench`, under the name of a file; `--help` lists the options.
"""

import sys

from llmint8.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()
