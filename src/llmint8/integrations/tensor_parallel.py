"""Tensor parallelism through transformers: `from_pretrained(path, tp_plan="auto")` under torchrun.

transformers makes a DTensor of every parameter that its plan names, and reads only a rank's part of it.
Codes and bias are cut as in a float layer. Scales follow the rows of their weight: cut where rows are dealt
out to the ranks (column-parallel layers), whole on every rank where the rows themselves are cut (row-parallel
layers). So the tensors of all ranks together are those of one process, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, distributed, nn

from llmint8 import reference
from llmint8.errors import QuantizationError
from llmint8.nn import Int8Conv1D, Int8Linear

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


def prepare_layers(model: nn.Module, plan: dict[str, str]) -> None:
    """Make a model on the meta device ready for `plan`; nothing happens outside torch.distributed.

    transformers cuts parameters only, so scales become parameters here (`settle_scale` turns those of layers
    that no plan names into buffers again). Other modules with int8 tensors (experts, embeddings) leave the
    plan, and so does a head that is tied to one: every rank holds them whole, which is right, since their
    inputs and outputs are whole on every rank.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from transformers.integrations.tensor_parallel import replace_layer_number_by_wildcard

    whole = _left_whole(model)
    for name, module in model.named_modules():
        if name in whole:
            generic = replace_layer_number_by_wildcard(name)
            for key in [key for key in plan if key == generic or key.startswith(f"{generic}.")]:
                del plan[key]
        elif isinstance(module, Int8Linear):
            if "SCB" in module._buffers:
                scb = module._buffers.pop("SCB")
                module.SCB = nn.Parameter(cast(Tensor, scb), requires_grad=False)
            # transformers: hand the forward a rank's plain tensors, in training too.
            module._hf_quantized_needs_local_tp = True  # type: ignore[assignment]


def _left_whole(model: nn.Module) -> set[str]:
    """Names of the modules with int8 tensors that no plan may cut."""
    whole = {
        name
        for name, module in model.named_modules()
        if not isinstance(module, Int8Linear)
        and any(tensor.dtype == torch.int8 for tensor in own_tensors(module))
    }
    for pair in getattr(model, "all_tied_weights_keys", {}).items():
        owners = {key.rpartition(".")[0] for key in pair}
        if owners & whole:
            whole |= owners
    return whole


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module itself, not of its children."""
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


def own_shape(tensor: Tensor) -> torch.Size:
    """The shape of what this rank holds of a tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local().shape if isinstance(tensor, DTensor) else tensor.shape


def quantize_part(weight: Tensor, module: Int8Linear, name: str) -> tuple[Tensor, Tensor]:
    """Quantise what this rank has read of a weight; all ranks call it for the same weight.

    weight: float, the rank's part of `[N, K]`. name: what an error calls it.

    Returns the codes of that part, int8, and the absmax of its rows over all ranks, float32: the bits that
    one process computes. `module.SCB` becomes a placeholder for it, in case of an error too.
    Raises QuantizationError if this rank's part cannot be quantised, or another rank's part of the same rows;
    also for a `Conv1D`, whose file holds the weight the other way round than the plan cuts it.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(module.weight, DTensor):
        return reference.quantize_weight(weight, name)
    if isinstance(module, Int8Conv1D):
        raise QuantizationError(
            f"{name}: a Conv1D cannot be quantised under tensor parallelism: convert first with "
            "`llmint8 quantize MODEL OUT`, then load OUT"
        )
    error = None
    try:
        absmax = reference.weight_absmax(weight, name)
    except QuantizationError as found:
        error = found
        absmax = torch.full((weight.shape[0],), torch.inf, device=weight.device)
    mesh = module.weight.device_mesh
    for dimension, cut in enumerate(module.weight.placements):
        if _cuts(cut, 1):
            distributed.all_reduce(absmax, distributed.ReduceOp.MAX, mesh.get_group(dimension))
    _place_scale(module, torch.empty(module.weight.shape[0], device="meta"))
    if error is not None:
        raise error
    if not bool(absmax.isfinite().all()):
        raise QuantizationError(f"{name} holds a NaN or an infinity, which another rank has read")
    return reference.weight_codes(weight, absmax), absmax


def settle_scale(module: Int8Linear) -> None:
    """After loading: the scales go where the rows of the weight are, or become a buffer again.

    Raises QuantizationError for a layer with a second weight digit that was cut: saving would not join it.
    """
    from torch.distributed.tensor import DTensor

    if module.outlier_cols is not None and isinstance(module.weight, DTensor):
        raise QuantizationError(
            "int16 outlier weights cannot be cut by tensor parallelism: convert the float model again with "
            'outlier_weights="int8"'
        )
    scb = module.SCB
    if not isinstance(scb, nn.Parameter):
        return
    if not isinstance(module.weight, DTensor):
        del module._parameters["SCB"]
        module.register_buffer("SCB", scb.detach())
    elif isinstance(scb, DTensor) and scb.placements != _scale_placements(module.weight):
        _place_scale(module, scb.full_tensor())


def _scale_placements(weight: DTensor) -> tuple[Placement, ...]:
    from torch.distributed.tensor import Replicate

    return tuple(cut if _cuts(cut, 0) else Replicate() for cut in weight.placements)


def _place_scale(module: Int8Linear, scb: Tensor) -> None:
    """Let `module.SCB` be this rank's part of `scb`, `[N]`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    weight = cast(DTensor, module.weight)
    part = distribute_tensor(scb, weight.device_mesh, _scale_placements(weight), src_data_rank=None)
    module.SCB = nn.Parameter(part, requires_grad=False)


def _cuts(placement: object, dimension: int) -> bool:
    """Whether a placement of a weight `[N, K]` deals out this dimension."""
    cut = getattr(placement, "dim", None)
    return cut is not None and cut % 2 == dimension
