"""Optimizers that follow a momentum of the gradients: SGD, LARS, Lion."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT

from llmint8.errors import ConfigError
from llmint8.numerics import MIN_8BIT_SIZE
from llmint8.optim.base import BlockwiseOptimizer
from llmint8.optim.norms import ClippedOptimizer
from llmint8.reference.optimizers import LION, MOMENTUM, Common, Rule


def _sgd_constants(options: dict[str, Any], step: int) -> list[float]:
    """torch.optim.SGD: the first gradient becomes the buffer as it is, without dampening."""
    momentum = options["momentum"]
    weight = 1.0 if step == 1 else 1 - options["dampening"]
    return [momentum, weight, *((1.0, momentum) if options["nesterov"] else (0.0, 1.0))]


def _check_sgd(options: dict[str, Any]) -> None:
    if not options["momentum"]:
        raise ConfigError("momentum must be above 0: without it there is no state; use torch.optim.SGD")
    if options["nesterov"] and options["dampening"]:
        raise ConfigError(f"nesterov needs dampening=0, got {options['dampening']}")


class SGD(BlockwiseOptimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    lr, momentum (above 0), dampening, weight_decay, nesterov: as in torch. optim_bits, min_8bit_size: see
    `BlockwiseOptimizer`. Raises ConfigError for a value out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov,
        }  # fmt: skip
        super().__init__(params, defaults, optim_bits, min_8bit_size)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        _check_sgd(options)

    def _rule(self, options: dict[str, Any]) -> Rule:  # noqa: ARG002
        return MOMENTUM

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:
        return _sgd_constants(options, step)


class LARS(ClippedOptimizer):
    """LARS (You, Gitman and Ginsburg, arXiv 1708.03888): SGD whose update is bounded by the weights' norm.

    max_unorm: the norm of a tensor's update, before the learning rate, is at most this many times the norm of
    the tensor; 0 for no bound. The rest: see `SGD`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        max_unorm: float = 0.02,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "max_unorm": max_unorm,
        }  # fmt: skip
        super().__init__(params, defaults, optim_bits, min_8bit_size)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        _check_sgd(options)

    def _rule(self, options: dict[str, Any]) -> Rule:  # noqa: ARG002
        return MOMENTUM

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:
        return _sgd_constants(options, step)


class Lion(BlockwiseOptimizer):
    """Lion (Chen et al., arXiv 2302.06675): the sign of a momentum, with decoupled weight decay.

    lr: a third to a tenth of AdamW's. betas: of the update, and of the state. The rest: see
    `BlockwiseOptimizer`. Raises ConfigError for a value out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
        is_paged: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults, optim_bits, min_8bit_size, is_paged)

    def _rule(self, options: dict[str, Any]) -> Rule:  # noqa: ARG002
        return LION

    def _common(self, options: dict[str, Any], step: int) -> Common:  # noqa: ARG002
        lr = float(options["lr"])
        return Common(lr, decay=1 - lr * options["weight_decay"])

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:  # noqa: ARG002
        beta1, beta2 = options["betas"]
        return [beta1, 1 - beta1, beta2, 1 - beta2]
