"""The namespace `llmint8` of torch operators, and how a backend adds a kernel to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

LIBRARY = torch.library.Library("llmint8", "DEF")


def define(name: str, schema: str, default: Callable[..., Any], fake: Callable[..., Any]) -> OpOverload:
    """Declare an operator with its default implementation (any device) and its shapes; return it."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llmint8::{name}", fake, lib=LIBRARY)
    operator: OpOverload = getattr(torch.ops.llmint8, name).default
    return operator


def implement(operator: OpOverload, kernel: Callable[..., Any], dispatch_key: str) -> None:
    """Let `kernel` run `operator` for tensors of a device, for example under the key "CPU"."""
    LIBRARY.impl(operator.name().split("::")[1].removesuffix(".default"), kernel, dispatch_key)
