"""A whole model: llmint8 against transformers, bitsandbytes, torchao and llama.cpp.

    python benchmarks/model.py
    python benchmarks/model.py --model ./my-model --batches 1 --json model.json --plot model.png

It is `llmint8 bench --model smollm2`, under the name of a file; `--help` lists the options.
"""

import sys

from llmint8.cli import main

if __name__ == "__main__":
    chosen = any(argument.split("=")[0] == "--model" for argument in sys.argv)
    sys.argv[1:1] = ["bench"] if chosen else ["bench", "--model", "smollm2"]
    main()
