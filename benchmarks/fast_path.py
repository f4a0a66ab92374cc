"""Greedy text of the fast path against that of the plain int8 model: `python benchmarks/fast_path.py`.

Each prompt is continued by the plain model, by the fast path, and by the plain model with attention that sums
in another order (`eager` for `sdpa`): where torch differs from itself, nobody else can agree with it. Texts
may part only where the two highest logits are closer than twice the largest difference between logits.
"""

import argparse
import copy
from dataclasses import dataclass, field

import torch

from llmint8 import optimize_for_inference
from llmint8.cli.models import find_model, load_int8, load_tokenizer
from llmint8.cli.options import Dtype
from llmint8.cli.text import first_tokens
from llmint8.convert.outlier_columns import sample_text
from llmint8.fast import fast_path


@dataclass
class Agreement:
    """How a model agreed with the plain one. Differences are of logits along the plain model's texts."""

    equal: int = 0
    gaps: list[float] = field(default_factory=list)  # between the two highest logits, where texts part
    largest: float = 0.0
    relative: list[float] = field(default_factory=list)  # 2-norm of the difference over that of the logits

    def add(self, expected, got, logits, own) -> None:
        self.largest = max(self.largest, float((logits - own).abs().max()))
        self.relative.append(float((logits - own).norm() / logits.norm()))
        apart = (expected != got).nonzero()
        if len(apart) == 0:
            self.equal += 1
        else:
            two = logits[int(apart[0])].topk(2).values
            self.gaps.append(float(two[0] - two[1]))

    def row(self, name: str) -> str:
        mean = sum(self.relative) / len(self.relative)
        gap = f"{max(self.gaps):.2f}" if self.gaps else "-"
        return f"| {name} | {self.equal} | {gap} | {self.largest:.2f} | {100 * mean:.1f} % |"


def greedy(model, ids, new):
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]


def logits_along(model, ids, text):
    with torch.no_grad():
        return model(torch.cat([ids, text[None]], 1)).logits[0, ids.shape[1] - 1 : -1].float()


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
    eager = copy.deepcopy(plain)
    eager.set_attn_implementation("eager")
    fast = optimize_for_inference(copy.deepcopy(plain))
    print(f"{arguments.model}, {arguments.dtype.value}: {fast_path(fast)}")
    text = first_tokens(load_tokenizer(found.path), sample_text(), arguments.prompts * arguments.length)
    others = {"the same modules, eager attention": eager, "the fast path": fast}
    found_out = {name: Agreement() for name in others}
    for prompt in text.split(arguments.length):
        ids = prompt.unsqueeze(0)
        expected = greedy(plain, ids, arguments.new)
        logits = logits_along(plain, ids, expected)
        for name, other in others.items():
            got = greedy(other, ids, arguments.new)
            found_out[name].add(expected, got, logits, logits_along(other, ids, expected))
    print(
        f"\n| {arguments.prompts} texts of {arguments.new} tokens | equal | widest gap where they part ",
        end="",
    )
    print("| largest difference | relative |\n|---|---|---|---|---|")
    for name, agreement in found_out.items():
        print(agreement.row(name))


if __name__ == "__main__":
    main()
