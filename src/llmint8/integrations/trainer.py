"""`TrainingArguments(optim="adamw_bnb_8bit")` and its like, run by `llmint8.optim` without bitsandbytes.

To import this module is to register. Where bitsandbytes is installed, its optimizers stay what transformers
uses; pass `Trainer(optimizers=(AdamW8bit(...), None))` there.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import trainer_optimizer

from llmint8 import optim
from llmint8.integrations import bitsandbytes
from llmint8.optim.base import KEEP_32_BITS

#: By what transformers' names begin with, after "paged_".
_CLASSES: dict[str, Any] = {
    "adamw": optim.AdamW,
    "ademamix": optim.AdEMAMix,
    "lion": optim.Lion,
    "rmsprop": optim.RMSprop,
}


def _optimizer(context: Any) -> tuple[Any, dict[str, Any]]:
    """Class and arguments for transformers' context; embeddings keep 32 bits, as with bitsandbytes."""
    name = str(getattr(context.args.optim, "value", context.args.optim))
    paged = name.startswith("paged_")
    kind = name.removeprefix("paged_").split("_")[0]
    args, given = context.args, context.optim_args
    arguments: dict[str, Any] = {"optim_bits": 8 if "8bit" in name else 32}
    if kind == "rmsprop":
        arguments |= {key: float(value) for key, value in given.items()}
    elif kind == "lion":
        arguments |= {"betas": (args.adam_beta1, args.adam_beta2)}
    else:
        arguments |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if kind == "ademamix":
        fixed = (("beta1", args.adam_beta1), ("beta2", args.adam_beta2), ("beta3", 0.9999))
        arguments["betas"] = tuple(float(given.get(key, default)) for key, default in fixed)
        arguments |= {key: float(given[key]) for key in ("alpha", "eps") if key in given}
        arguments |= {key: int(given[key]) for key in ("t_alpha", "t_beta3") if key in given}
    if paged:
        arguments["is_paged"] = True
    if context.model is not None:
        for module in context.model.modules():
            if isinstance(module, nn.Embedding):
                setattr(module.weight, KEEP_32_BITS, True)
    return _CLASSES[kind], context.optimizer_kwargs | arguments


def _register() -> None:
    if bitsandbytes.is_installed():
        return
    handlers = trainer_optimizer._OPTIMIZER_HANDLERS
    for name in trainer_optimizer._BITSANDBYTES_OPTIMIZERS:
        handlers[name] = _optimizer


_register()
