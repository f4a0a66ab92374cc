"""What all optimizers share: where the state lives, when it has 8 bits, and how it is saved.

A subclass says which rule it follows and computes the rule's constants; the arithmetic itself is
`ops.optimizer_step` (docs/optimizers.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from llmint8 import ops
from llmint8.errors import ConfigError, InputError
from llmint8.numerics import MIN_8BIT_SIZE, OPTIMIZER_BLOCK
from llmint8.optim import saved
from llmint8.optim.pages import Pages
from llmint8.reference.blockwise import block_count, zero_code
from llmint8.reference.optimizers import Common, Rule

#: Attribute of a parameter whose state always has 32 bits; `StableEmbedding` sets it.
KEEP_32_BITS = "llmint8_keep_32_bits"


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, but for a DTensor (FSDP2)."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


class BlockwiseOptimizer(torch.optim.Optimizer, ABC):
    """Base of the optimizers; see its subclasses.

    optim_bits: 8 or 32, the bits of a state's element. min_8bit_size: tensors with fewer elements have 32
    bits all the same. Both are options of a parameter group, like the learning rate. is_paged: the state lies
    in a file, of which few pages are in memory; that of parameters on a GPU in memory of the host.
    """

    _optim_bits = 32
    _is_paged = False

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        optim_bits: int | None,
        min_8bit_size: int = MIN_8BIT_SIZE,
        is_paged: bool | None = None,
    ) -> None:
        bits = self._optim_bits if optim_bits is None else optim_bits
        self.overrides: dict[Tensor, dict[str, Any]] = {}
        self.pages = Pages() if (self._is_paged if is_paged is None else is_paged) else None
        super().__init__(params, {**defaults, "optim_bits": bits, "min_8bit_size": min_8bit_size})

    @abstractmethod
    def _rule(self, options: dict[str, Any]) -> Rule:
        """The rule that a parameter with these options follows."""

    @abstractmethod
    def _constants(self, options: dict[str, Any], step: int) -> list[float]:
        """The rule's constants at a step, counted from 1."""

    def _common(self, options: dict[str, Any], step: int) -> Common:  # noqa: ARG002
        """The step along the update, and the weight decay: into the gradient unless a subclass differs."""
        return Common(float(options["lr"]), coupled_decay=options["weight_decay"])

    def _initial(self, options: dict[str, Any]) -> float:  # noqa: ARG002
        """What the first state holds before the first step."""
        return 0.0

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ConfigError unless the options make sense."""
        for name in ("lr", "eps", "weight_decay", "initial_accumulator_value", "lr_decay", "max_unorm"):
            if name in options and not float(options[name]) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {options[name]}")
        rates = [*options.get("betas", ()), options.get("momentum", 0.0)]
        if any(not 0 <= rate < 1 for rate in rates):
            raise ConfigError(f"betas and momentum must be at least 0 and below 1, got {rates}")
        if options["optim_bits"] not in (8, 32):
            raise ConfigError(f"optim_bits must be 8 or 32, got {options['optim_bits']}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own. Raises ConfigError for an option out of range."""
        super().add_param_group(param_group)
        self._check(self.param_groups[-1])

    def override(self, target: nn.Module | Tensor | Iterable[Tensor], **options: Any) -> None:
        """Give parameters options that differ from their group's, for example `optim_bits=32`.

        target: a module (all its parameters), a parameter, or several. Bits count from the first step on: the
        state that a parameter has stays as it is. Raises ConfigError for an unknown option or one out of
        range.
        """
        unknown = options.keys() - self.defaults.keys()
        if unknown:
            raise ConfigError(f"unknown option {sorted(unknown)}; there are {', '.join(self.defaults)}")
        self._check({**self.defaults, **options})
        if isinstance(target, nn.Module):
            target = target.parameters()
        for parameter in [target] if isinstance(target, Tensor) else target:
            self.overrides.setdefault(parameter, {}).update(options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if there is a closure.

        Raises InputError for a sparse gradient, or a parameter that is not float32, float16 or bfloat16.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, {**group, **self.overrides.get(parameter, {})})
        if self.pages is not None:
            self.pages.settle()
        return loss

    def _step_parameter(self, parameter: Tensor, options: dict[str, Any]) -> None:
        gradient = parameter.grad
        if gradient is None or gradient.layout != torch.strided:
            raise InputError("sparse gradients cannot be used here; make the embedding with sparse=False")
        state, rule = self.state[parameter], self._rule(options)
        if not state:
            self._start(parameter, state, rule, options)
        state["step"] += 1
        weight, g = local(parameter.detach()), local(gradient).contiguous()
        p = weight.contiguous()
        constants = self._constants(options, state["step"])
        common = self._scaled(
            parameter, rule, p, g, state, self._common(options, state["step"]), constants, options
        )
        states, absmax = saved.tensors(state, len(rule.signed))
        if self.pages is None:
            ops.optimizer_step(rule, p, g, states, absmax, common, constants)
        else:
            self.pages.step(rule, p, g, states, absmax, common, constants)
        if p.data_ptr() != weight.data_ptr():
            weight.copy_(p)

    def _scaled(
        self, parameter: Tensor, rule: Rule, p: Tensor, g: Tensor, state: dict[str, Any], common: Common,
        constants: list[float], options: dict[str, Any],
    ) -> Common:  # fmt: skip
        """The common constants after a look at the whole tensor; only some optimizers take one."""
        del parameter, rule, p, g, state, constants, options
        return common

    def _start(self, parameter: Tensor, state: dict[str, Any], rule: Rule, options: dict[str, Any]) -> None:
        """Create the state of a parameter."""
        p = local(parameter.detach())
        keep = getattr(parameter, KEEP_32_BITS, False) or p.numel() < options["min_8bit_size"]
        eight_bits = options["optim_bits"] == 8 and not keep
        state["step"] = 0
        for i, signed in enumerate(rule.signed, 1):
            make = torch.empty if self.pages is None else self.pages.empty
            state[f"state{i}"] = make(
                tuple(p.shape), dtype=torch.uint8 if eight_bits else torch.float32, device=p.device
            )
            initial = self._initial(options) if i == 1 else 0.0
            if eight_bits:
                # 1 is the code book's largest value, so a constant is exact: its absmax.
                state[f"state{i}"].fill_(OPTIMIZER_BLOCK - 1 if initial else zero_code(signed))
                state[f"absmax{i}"] = torch.full((block_count(p.numel()),), initial, device=p.device)
            else:
                state[f"state{i}"].fill_(initial)

    def state_dict(self) -> dict[str, Any]:
        """As torch's; 8-bit states bring their code books, under the names that bitsandbytes gives them."""
        state_dict = super().state_dict()
        signed = [self._rule(group).signed for group in self.param_groups for _ in group["params"]]
        return saved.with_code_books(state_dict, signed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned here or in bitsandbytes, on any device; codes stay codes.

        Raises CheckpointError for a state that does not fit its parameter or has other code books, and
        ValueError (torch) for other groups.
        """
        super().load_state_dict({**state_dict, "state": {}})
        # torch would cast codes and scales to the parameter's dtype, so they are filled in here.
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [(p, group) for group in self.param_groups for p in group["params"]]
        for index, (parameter, group) in zip(saved_ids, own, strict=True):
            if index in state_dict["state"]:
                part = local(parameter.detach())
                state = saved.checked(state_dict["state"][index], part, self._rule(group), str(index))
                self.state[parameter] = state if self.pages is None else self.pages.adopt(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "overrides": self.overrides, "pages": self.pages}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # those that bitsandbytes saved lack some options
            for name, default in self.defaults.items():
                group.setdefault(name, default)
