"""Outlier injection: a small model is given the outlier columns of a large one, and stays the same function.

At chosen hidden columns the output of a norm is multiplied by f, and the columns of every linear layer that
reads it are divided by f. A power of two only moves exponents, so float results stay bit-identical, while a
quantised layer meets activations such as models beyond 6.7B parameters have (arXiv 2208.07339, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmint8.analysis.readers import Norm, find_readers, tensors_in
from llmint8.analysis.weights import linear_weight
from llmint8.errors import InputError


@dataclass(frozen=True)
class Injection:
    """What was scaled. columns: hidden dimensions. factor: a power of two. norms: each that was scaled, with
    the linear layers that read it. left: each that was not, with the reason."""

    columns: tuple[int, ...]
    factor: int
    norms: dict[str, tuple[str, ...]]
    left: dict[str, str]


def columns_by_factor(text: str) -> tuple[int, int]:
    """How many columns and by which factor, from a text such as "6x64"; raises InputError for another."""
    columns, _, factor = text.replace("×", "x").partition("x")
    if not (columns.isdecimal() and factor.isdecimal()):
        raise InputError(f"got {text!r}; give columns by factor, such as 6x64")
    return int(columns), int(factor)


def inject_outliers(
    model: nn.Module, inputs: Mapping[str, Any], columns: int | Sequence[int] = 6, factor: int = 64
) -> Injection:
    """Scale hidden columns of a model in place, without changing what it computes.

    model: a float model in evaluation mode. Its norms are scaled (RMSNorm, LayerNorm with its bias, and norms
        that multiply with 1 + weight) if nothing but linear layers reads them; the others are left alone.
    inputs: keyword arguments of the model for two forward passes: one finds the readers, one after the
        scaling proves that all outputs are bit-identical. A few tokens will do.
    columns: hidden dimensions, or how many, spread evenly. factor: a power of two from 2 on.

    Returns what was scaled and what was not, with reasons.
    Raises InputError for a factor that is no power of two, for columns that do not exist, for a quantised
    model, for one in which no norm is read by linear layers alone, or if the outputs would change; the model
    is unchanged then.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2 or factor & (factor - 1):
        raise InputError(f"the factor must be a power of two from 2 on, got {factor!r}: others change floats")
    if not all(p.is_floating_point() for p in model.parameters()):
        raise InputError(
            "the model is quantised already; inject outliers into the float model, then convert it"
        )
    norms, before = find_readers(model, inputs)
    chosen, left = _choose(norms)
    if not before:
        raise InputError(
            "the model returns no tensor that could prove its outputs unchanged; give a whole model"
        )
    indices = _columns(columns, chosen[0].output.shape[-1])
    undo: list[tuple[Tensor, Tensor]] = []
    try:
        for norm in chosen:
            _scale_norm(norm, indices, factor, undo)
            for name in norm.readers:
                weight = _weight_of(model.get_submodule(name))
                _set(weight, indices, weight.detach()[..., indices] / factor, undo)
        with torch.no_grad():
            after = list(tensors_in(model(**inputs)))
        if len(before) != len(after) or not all(map(torch.equal, before, after)):
            raise InputError(
                "the scaled model does not return the same bits; load it in float32, in evaluation mode, and "
                "give a smaller factor if it holds values near the limits of its type"
            )
    except BaseException:
        with torch.no_grad():
            for tensor, original in reversed(undo):
                tensor[..., indices] = original
        raise
    return Injection(
        tuple(indices.tolist()), factor, {norm.name: tuple(norm.readers) for norm in chosen}, left
    )


def _choose(norms: list[Norm]) -> tuple[list[Norm], dict[str, str]]:
    """Norms to scale, all of one size, and the others with the reason."""
    left = {norm.name: norm.obstacle for norm in norms if norm.obstacle is not None}
    chosen = [norm for norm in norms if norm.obstacle is None]
    if not chosen:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:3])
        raise InputError(
            "outliers cannot be injected: the model has no norm whose output only linear layers read "
            f"({found or 'it has no norm'}); give a model that normalises the input of its linear layers"
        )
    size = chosen[0].output.shape[-1]
    for norm in chosen:
        if norm.output.shape[-1] != size:
            left[norm.name] = f"it has {norm.output.shape[-1]} columns, the first norm {size}"
    return [norm for norm in chosen if norm.name not in left], left


def _columns(columns: int | Sequence[int], size: int) -> Tensor:
    """Indices int64, ascending, of distinct columns."""
    if isinstance(columns, int):
        if not 1 <= columns <= size:
            raise InputError(f"{columns} columns cannot be injected into {size}; give 1 to {size}")
        return torch.arange(columns) * size // columns + size // (2 * columns)
    wanted = sorted(set(columns))
    if not wanted or wanted[0] < 0 or wanted[-1] >= size:
        raise InputError(f"the columns must be within 0 to {size - 1}, got {list(columns)}")
    return torch.tensor(wanted)


def _set(tensor: Tensor, columns: Tensor, values: Tensor, undo: list[tuple[Tensor, Tensor]]) -> None:
    """Overwrite some columns, and remember what was there."""
    with torch.no_grad():
        undo.append((tensor, tensor[..., columns].clone()))
        tensor[..., columns] = values.to(tensor.dtype)


def _scale_norm(norm: Norm, columns: Tensor, factor: int, undo: list[tuple[Tensor, Tensor]]) -> None:
    """Multiply some columns of what a norm returns; whether it multiplies with its weight or with 1 + weight
    is decided by what it then returns for the input of its first call."""
    weight, bias = _weight_of(norm.module), norm.module._parameters.get("bias")
    original = weight.detach()[..., columns].clone()
    wanted = norm.output.clone()
    wanted[..., columns] *= factor
    if bias is not None:
        _set(bias, columns, bias.detach()[..., columns] * factor, undo)
    # (1 + w) · f − 1 is exact in float32: it is a multiple of the spacing of (1 + w) · f, and smaller.
    for scaled in (original * factor, (1.0 + original.float()) * factor - 1.0):
        _set(weight, columns, scaled, undo)
        args, kwargs = norm.call
        with torch.no_grad():
            if torch.equal(norm.module(*args, **kwargs), wanted):
                return
    raise InputError(
        f"{norm.name} ({type(norm.module).__name__}) does not scale exactly with its {weight.dtype} weight; "
        "load the model in float32, or give other columns"
    )


def _weight_of(module: nn.Module) -> Tensor:
    """The weight of a norm `[K]`, or of a linear layer as `[N, K]`, a view."""
    weight = linear_weight(module)
    return cast(Tensor, module.weight) if weight is None else weight
