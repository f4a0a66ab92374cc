"""Optimizers that divide by the root of squared gradients alone: RMSprop, Adagrad."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT

from llmint8.errors import ConfigError
from llmint8.numerics import MIN_8BIT_SIZE
from llmint8.optim.base import BlockwiseOptimizer
from llmint8.reference.optimizers import ADAGRAD, RMSPROP, RMSPROP_MOMENTUM, Common, Rule


class RMSprop(BlockwiseOptimizer):
    """RMSprop (Tieleman and Hinton), as `torch.optim.RMSprop`, not centred.

    lr, alpha, eps, weight_decay, momentum: as in torch. optim_bits, min_8bit_size: see `BlockwiseOptimizer`.
    Raises ConfigError for a value out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults, optim_bits, min_8bit_size)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        if not 0 <= options["alpha"] < 1:
            raise ConfigError(f"alpha must be at least 0 and below 1, got {options['alpha']}")

    def _rule(self, options: dict[str, Any]) -> Rule:
        return RMSPROP_MOMENTUM if options["momentum"] else RMSPROP

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:  # noqa: ARG002
        constants = [options["alpha"], 1 - options["alpha"], options["eps"]]
        return [*constants, options["momentum"]] if options["momentum"] else constants


class Adagrad(BlockwiseOptimizer):
    """Adagrad (Duchi, Hazan and Singer, JMLR 2011), as `torch.optim.Adagrad`.

    lr, lr_decay, weight_decay, initial_accumulator_value, eps: as in torch. optim_bits, min_8bit_size: see
    `BlockwiseOptimizer`. Raises ConfigError for a value out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "eps": eps,
        }  # fmt: skip
        super().__init__(params, defaults, optim_bits, min_8bit_size)

    def _rule(self, options: dict[str, Any]) -> Rule:  # noqa: ARG002
        return ADAGRAD

    def _initial(self, options: dict[str, Any]) -> float:
        return float(options["initial_accumulator_value"])

    def _common(self, options: dict[str, Any], step: int) -> Common:
        lr = float(options["lr"]) / (1 + (step - 1) * options["lr_decay"])
        return Common(lr, coupled_decay=options["weight_decay"])

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:  # noqa: ARG002
        return [options["eps"]]
