"""One training step of LoRA adapters, on bases of several kinds: `python benchmarks/finetune.py`.

Each candidate is a process of its own, that holds one model with adapters and steps when it is told to; they
take turns. A step is forward, backward and AdamW on the adapters. Memory is the most that a process held
while it trained, beyond what it held with its libraries in use and no model. bitsandbytes joins where it is
installed.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time

import torch

NAMES = {
    "float32": "transformers float32",
    "bfloat16": "transformers bfloat16",
    "int8": "llmint8",
    "nf4": "llmint8 NF4",
    "bitsandbytes": "bitsandbytes 8-bit",
}


def load(kind: str, targets: list[str], dtype: str):
    """A model with adapters. dtype: of what is float in a quantised one."""
    import warnings

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, logging

    import llmint8
    from llmint8.cli.smollm2 import smollm2_folder

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    chosen = getattr(torch, kind if kind in ("float32", "bfloat16") else dtype)
    settings = {}
    if kind == "bitsandbytes":
        settings["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif kind == "int8":
        settings["quantization_config"] = llmint8.Int8Config()
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=chosen, **settings)
    if kind == "nf4":
        llmint8.quantize_model_4bit(model)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    return adapted.train()


def serve(kind: str, batch: int, tokens: int, targets: list[str], dtype: str, threads: int) -> None:
    from llmint8.bench.memory import peak, reset_peak

    torch.set_num_threads(threads)
    toy = torch.nn.Linear(64, 64)
    toy(torch.randn(8, 64)).sum().backward()
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    base = reset_peak()
    model = load(kind, targets, dtype)
    reset_peak()  # loading is another matter
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    ids = torch.randint(1000, 40_000, (batch, tokens), generator=torch.Generator().manual_seed(1))
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        spent, high = time.perf_counter() - start, peak()
        memory = None if base is None or high is None else high - base
        print(json.dumps({"seconds": spent, "bytes": memory, "loss": loss.item()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="steps of each, after one that does not count")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"], help="modules with adapters")
    parser.add_argument("--bases", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the rest")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--serve", choices=list(NAMES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        a = arguments
        serve(a.serve, a.batch, a.tokens, a.targets, a.dtype, a.threads)
        return
    installed = importlib.util.find_spec("bitsandbytes")
    kinds = [kind for kind in arguments.bases if kind != "bitsandbytes" or installed]
    workers, results = {}, {kind: [] for kind in kinds}
    for kind in kinds:
        command = [sys.executable, __file__, *sys.argv[1:], "--serve", kind]
        workers[kind] = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)
        workers[kind].stdout.readline()
    for turn in range(arguments.rounds + 1):
        for kind, worker in workers.items():
            worker.stdin.write("\n")
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline())
            results[kind] += [answer] if turn else []
            print(f"  {turn}: {NAMES[kind]} {answer['seconds']:.2f} s, loss {answer['loss']:.3f}", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    reference = "int8" if "int8" in kinds else kinds[0]
    ours = statistics.median(r["seconds"] for r in results[reference])
    print(
        f"\nbatch {arguments.batch} × {arguments.tokens} tokens, rank 8 on {' '.join(arguments.targets)}, ",
        end="",
    )
    print(f"what stays float in {arguments.dtype}, {arguments.threads} threads, torch {torch.__version__}\n")
    print(f"| base | step, s | ÷ {NAMES[reference]} | memory, MiB |\n|---|---|---|---|")
    for kind, answers in results.items():
        seconds = statistics.median(r["seconds"] for r in answers)
        memory = max(r["bytes"] or 0 for r in answers) / 2**20
        print(f"| {NAMES[kind]} | {seconds:.2f} | {seconds / ours:.2f} | {memory:,.0f} |")


if __name__ == "__main__":
    main()
