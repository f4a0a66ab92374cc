"""Tensor parallelism through transformers: `from_pretrained(path, tp_plan="auto")` under torchrun.

transformers makes a DTensor of every parameter that its plan names, and reads only a rank's part of it.
Codes and bias are cut as in a float layer. Scales follow the rows of their weight: cut where rows are dealt
out to the ranks (column-parallel layers), whole on every rank where the rows themselves are cut (row-parallel
layers). So the tensors of all ranks together are those of one process, whatever the number of ranks. The
second weight digit follows rows in the same way; of a cut row each rank multiplies the columns that it holds.
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
    """After loading: the scales go where the rows of the weight are, or become a buffer again."""
    from torch.distributed.tensor import DTensor

    scb = module.SCB
    if not isinstance(scb, nn.Parameter):
        return
    if not isinstance(module.weight, DTensor):
        del module._parameters["SCB"]
        module.register_buffer("SCB", scb.detach())
    elif isinstance(scb, DTensor) and scb.placements != _scale_placements(module.weight):
        _place_scale(module, scb.full_tensor())


def settle_second_digit(module: Int8Linear) -> None:
    """After loading: each rank keeps what it needs of the second weight digit, which all have read whole.

    Where rows are dealt out, `weight_low` is cut like the scales. Where they are cut, a rank multiplies the
    columns that it holds, numbered from its first; which those are no DTensor can say, so the whole stays
    beside them (2 % of the layer) for the state that `save_pretrained` writes.
    """
    from torch.distributed.tensor import DTensor

    weight, columns, low = module.weight, module.outlier_cols, module.weight_low
    if columns is None or low is None or not isinstance(weight, DTensor):
        return
    if not any(_cuts(cut, 1) for cut in weight.placements):
        del module._buffers["weight_low"]
        module.weight_low = _like_scales(low, weight)
        return
    own = _own_columns(weight)
    held = torch.isin(columns, own)
    module.outlier_cols = torch.searchsorted(own, columns[held]).int() if held.any() else None
    module.weight_low = low[:, held].contiguous() if held.any() else None

    def say_whole(_: nn.Module, state: dict[str, Tensor], prefix: str, __: object) -> None:
        state.update({f"{prefix}outlier_cols": columns, f"{prefix}weight_low": low})

    module.register_state_dict_post_hook(say_whole)  # type: ignore[no-untyped-call]


def _own_columns(weight: DTensor) -> Tensor:
    """The columns of a weight `[N, K]` that this rank holds, int32, ascending."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    placements = [cut if _cuts(cut, 1) else Replicate() for cut in weight.placements]
    columns = torch.arange(weight.shape[1], dtype=torch.int32)[None]
    part = distribute_tensor(columns, weight.device_mesh, placements, src_data_rank=None)
    return part.to_local()[0]


def is_spread(model: nn.Module) -> bool:
    """Whether a model that was loaded lies on several devices or ranks, or partly outside of the memory."""
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return True
    if any(parameter.is_meta for parameter in model.parameters()):
        return True
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _scale_placements(weight: DTensor) -> tuple[Placement, ...]:
    from torch.distributed.tensor import Replicate

    return tuple(cut if _cuts(cut, 0) else Replicate() for cut in weight.placements)


def _place_scale(module: Int8Linear, scb: Tensor) -> None:
    """Let `module.SCB` be this rank's part of `scb`, `[N]`."""
    module.SCB = _like_scales(scb, cast("DTensor", module.weight))


def _like_scales(tensor: Tensor, weight: DTensor) -> nn.Parameter:
    """A tensor `[N, ...]` of which each rank holds the rows that it holds of the weight."""
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(tensor, weight.device_mesh, _scale_placements(weight), src_data_rank=None)
    return nn.Parameter(part, requires_grad=False)


def _cuts(placement: object, dimension: int) -> bool:
    """Whether a placement of a weight `[N, K]` deals out this dimension."""
    cut = getattr(placement, "dim", None)
    return cut is not None and cut % 2 == dimension
