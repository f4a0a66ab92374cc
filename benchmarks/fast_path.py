"""Greedy text of the fast path against that of the plain int8 model: `python benchmarks/fast_path.py`.

Each prompt is continued by both. Where they part, the plain model's two highest logits there are shown: texts
may part only where these are closer than the largest difference between the logits of both paths.
"""

import argparse
import copy

import torch

from llmint8 import optimize_for_inference
from llmint8.cli.models import find_model, load_int8, load_tokenizer
from llmint8.cli.options import Dtype
from llmint8.cli.text import first_tokens
from llmint8.convert.outlier_columns import sample_text
from llmint8.fast import fast_path


def greedy(model, ids, new):
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, or smollm2")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--length", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to write")
    parser.add_argument("--dtype", type=Dtype, default=Dtype.float32, choices=list(Dtype))
    parser.add_argument("--threshold", default=None)
    arguments = parser.parse_args()
    found = find_model(arguments.model)
    plain = load_int8(found, arguments.threshold, arguments.dtype)
    fast = optimize_for_inference(copy.deepcopy(plain))
    print(f"{arguments.model}, {arguments.dtype.value}: {fast_path(fast)}")
    text = first_tokens(load_tokenizer(found.path), sample_text(), arguments.prompts * arguments.length)
    equal, largest = 0, 0.0
    for index, prompt in enumerate(text.split(arguments.length)):
        ids = prompt.unsqueeze(0)
        expected, got = (greedy(model, ids, arguments.new) for model in (plain, fast))
        with torch.no_grad():
            whole = torch.cat([ids, expected[None]], 1)
            logits, own = (model(whole).logits[0, ids.shape[1] - 1 : -1].float() for model in (plain, fast))
        largest = max(largest, float((logits - own).abs().max()))
        apart = (expected != got).nonzero()
        if len(apart) == 0:
            equal += 1
            continue
        at = int(apart[0])
        two = logits[at].topk(2).values
        print(f"prompt {index} parts at token {at}: its two highest logits are {two[0] - two[1]:.2e} apart")
    print(f"{equal} of {arguments.prompts} texts of {arguments.new} tokens are equal")
    print(f"largest difference of a logit: {largest:.2e}")


if __name__ == "__main__":
    main()
