"""Adam and its relatives: AdamW, LAMB, AdEMAMix."""

from __future__ import annotations

import math
from typing import Any

from torch.optim.optimizer import ParamsT

from llmint8.errors import ConfigError
from llmint8.numerics import MIN_8BIT_SIZE
from llmint8.optim.base import BlockwiseOptimizer
from llmint8.optim.norms import ClippedOptimizer
from llmint8.reference.optimizers import ADAM, ADEMAMIX, Common, Rule


def _moments(options: dict[str, Any], step: int, bias_correction: bool = True) -> list[float]:
    """Adam's constants: rates, eps, and the corrections of a mean that starts at zero."""
    beta1, beta2 = options["betas"][:2]
    root, mean = 1.0, 1.0
    if bias_correction:
        root, mean = 1 / math.sqrt(1 - beta2**step), 1 / (1 - beta1**step)
    return [beta1, 1 - beta1, beta2, 1 - beta2, root, options["eps"], mean]


def _decoupled(options: dict[str, Any]) -> Common:
    lr = float(options["lr"])
    return Common(lr, decay=1 - lr * options["weight_decay"])


class Adam(BlockwiseOptimizer):
    """Adam (Kingma and Ba, arXiv 1412.6980); weight decay is added to the gradient, as in `torch.optim.Adam`.

    params, lr, betas, eps, weight_decay: as in torch. optim_bits, min_8bit_size, is_paged: see
    `BlockwiseOptimizer`; the bits default to those in the class's name.
    Raises ConfigError for a value out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
        is_paged: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, optim_bits, min_8bit_size, is_paged)

    def _rule(self, options: dict[str, Any]) -> Rule:  # noqa: ARG002
        return ADAM

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:
        return _moments(options, step)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), as `torch.optim.AdamW`.

    Arguments: see `Adam`; weight_decay shrinks the weights by `lr · weight_decay` in each step.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
        is_paged: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay,
            optim_bits=optim_bits, min_8bit_size=min_8bit_size, is_paged=is_paged,
        )  # fmt: skip

    def _common(self, options: dict[str, Any], step: int) -> Common:  # noqa: ARG002
        return _decoupled(options)


class AdEMAMix(BlockwiseOptimizer):
    """AdamW with a second, slow mean of the gradients (Pagliardini, Ablin and Grangier, arXiv 2409.03137).

    betas: of the fast mean, of the squares, of the slow mean. alpha: weight of the slow mean. t_alpha,
    t_beta3: steps over which alpha and the third beta grow to their values; None for none. The rest: see
    `AdamW`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
        is_paged: bool | None = None,
    ) -> None:
        if len(betas) != 3:
            raise ConfigError(f"AdEMAMix takes three betas, got {len(betas)}")
        defaults = {
            "lr": lr, "betas": betas, "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3, "eps": eps,
            "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults, optim_bits, min_8bit_size, is_paged)

    def _rule(self, options: dict[str, Any]) -> Rule:  # noqa: ARG002
        return ADEMAMIX

    def _common(self, options: dict[str, Any], step: int) -> Common:  # noqa: ARG002
        return _decoupled(options)

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:
        beta1, _, beta3 = options["betas"]
        alpha = options["alpha"]
        if options["t_alpha"]:
            alpha *= min(step / options["t_alpha"], 1.0)
        if options["t_beta3"] and 0 < beta1 < beta3 and step < options["t_beta3"]:
            # Equation 6 of the paper: linear in the half-life of the mean, not in its rate.
            share = step / options["t_beta3"]
            fast, slow = math.log(beta1), math.log(beta3)
            beta3 = min(beta3, math.exp(fast * slow / ((1 - share) * slow + share * fast)))
        return [*_moments(options, step), beta3, 1 - beta3, alpha]


class LAMB(ClippedOptimizer):
    """LAMB (You et al., arXiv 1904.00962): Adam whose update is no larger than the weights it changes.

    bias_correction: as in Adam, or none. adam_w_mode: weight decay is part of the update, as in the paper, or
    of the gradient. max_unorm: the norm of a tensor's update, before the learning rate, is at most this many
    times the norm of the tensor; 0 for no bound. The paper also enlarges small updates; this one, like
    bitsandbytes', does not. The rest: see `Adam`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        max_unorm: float = 1.0,
        *,
        optim_bits: int | None = None,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        defaults = {
            "lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps,
            "weight_decay": weight_decay, "adam_w_mode": adam_w_mode, "max_unorm": max_unorm,
        }  # fmt: skip
        super().__init__(params, defaults, optim_bits, min_8bit_size)

    def _rule(self, options: dict[str, Any]) -> Rule:  # noqa: ARG002
        return ADAM

    def _common(self, options: dict[str, Any], step: int) -> Common:
        if options["adam_w_mode"]:
            return Common(float(options["lr"]), update_decay=options["weight_decay"])
        return super()._common(options, step)

    def _constants(self, options: dict[str, Any], step: int) -> list[float]:
        return _moments(options, step, options["bias_correction"])
