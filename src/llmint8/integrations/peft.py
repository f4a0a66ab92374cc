"""What makes peft work on int8 layers; imported once peft is, and to import this module is to register.

peft takes an `Int8Linear` or a `Linear4bit` for an `nn.Linear`, which is right for every forward pass that
calls the layer, and wrong for whatever reads or writes its weight as floats.
"""

from __future__ import annotations

import functools
from typing import Any

from peft import prepare_model_for_kbit_training
from peft.tuners.lora.model import LoraModel
from peft.tuners.mixed.model import MixedModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from llmint8.errors import ConfigError, QuantizationError
from llmint8.integrations.import_hook import replace_function
from llmint8.integrations.peft_lora import Int8LoraLinear
from llmint8.nn import INT8_MODULES, Int8Linear, Linear4bit

#: Adapters whose forward pass computes with the weight itself, and would take codes for it.
_NEED_FLOAT_WEIGHTS = ("HRA", "SHIRA", "DELORA", "OSF")

_create_new_module = LoraModel._create_new_module
_inject_adapter = BaseTuner.inject_adapter
_check_merge_allowed = BaseTuner._check_merge_allowed
_unload_mixed = MixedModel._unload_and_optionally_merge
_prepare: Any = prepare_model_for_kbit_training


def _create_int8_module(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
    """peft's factory of LoRA layers, with ours in the configuration's list of custom ones."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if kwargs.get("parameter_name") is not None and isinstance(base, INT8_MODULES):
        what = f"{kwargs['parameter_name']} of {type(base).__name__}"
        raise ConfigError(f"target_parameters cannot name an int8 weight ({what}): use target_modules")
    # Here and not when a configuration is made, so that those read from a saved adapter know it too.
    lora_config._register_custom_module({Int8Linear: Int8LoraLinear})
    module: nn.Module = _create_new_module(lora_config, adapter_name, target, **kwargs)
    return module


def _inject_into_int8(self: BaseTuner, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    """peft's injection; raises QuantizationError for an adapter that would compute with codes."""
    kind = str(getattr(self.peft_config[adapter_name].peft_type, "value", None))
    if kind in _NEED_FLOAT_WEIGHTS and _is_quantized(model):
        raise QuantizationError(
            f"{kind} adapters compute with the float weight, which a quantised model has not; "
            "use LoRA, or adapt the float model"
        )
    return _inject_adapter(self, model, adapter_name, *args, **kwargs)


def _unload_mixed_int8(self: MixedModel, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
    """The one way to merge on which peft does not ask whether merging is allowed."""
    if merge:
        _refuse_unsupported_merge(self)
    return _unload_mixed(self, merge, *args, **kwargs)


def _is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, (Int8Linear, Linear4bit)) for module in model.modules())


def _refuse_unsupported_merge(self: BaseTuner) -> None:
    """Raise QuantizationError before an adapter that knows no codes writes floats over them."""
    for name, module in self.model.named_modules():
        if not isinstance(module, BaseTunerLayer) or isinstance(module, Int8LoraLinear):
            continue
        if isinstance(module.get_base_layer(), Linear4bit):
            raise QuantizationError(
                f"{name}: adapters are not merged into 4-bit weights, which would lose what they learned; "
                "keep the adapter apart, or merge it into the float model"
            )
        if isinstance(module.get_base_layer(), Int8Linear):
            kind = type(module).__module__.split(".")[-2]
            raise QuantizationError(
                f"{name}: {kind} adapters cannot be merged into int8 weights; keep the adapter apart, "
                "or merge it into the float model and quantise that"
            )
    _check_merge_allowed(self)


@functools.wraps(prepare_model_for_kbit_training)
def _prepare_int8_model(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """peft's function, told for the time of this call that the model is in 8 bits.

    The mark is not left on the model: accelerate takes it for bitsandbytes and refuses to train on a CPU.
    """
    if not _is_quantized(model):
        return _prepare(model, *args, **kwargs)
    before = getattr(model, "is_loaded_in_8bit", None)
    model.is_loaded_in_8bit = True  # type: ignore[assignment]
    try:
        return _prepare(model, *args, **kwargs)
    finally:
        if before is None:
            del model.is_loaded_in_8bit
        else:
            model.is_loaded_in_8bit = before


LoraModel._create_new_module = staticmethod(_create_int8_module)
BaseTuner.inject_adapter = _inject_into_int8
BaseTuner._check_merge_allowed = _refuse_unsupported_merge
MixedModel._unload_and_optionally_merge = _unload_mixed_int8
replace_function(prepare_model_for_kbit_training, _prepare_int8_model)
# What peft's own functions look for before they call `dequantize()`: DoRA's magnitudes come from there.
for _kind in (Int8Linear, Linear4bit):
    setattr(_kind, "W_q", property(lambda layer: layer.weight))  # noqa: B010 - mypy knows no such attribute
