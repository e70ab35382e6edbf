"""Lion (arXiv 2302.06675): steps are the sign of a mean of gradients, so that one moment is kept."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from umscale.parts import OptimizerPart


class Lion(torch.optim.Optimizer):
    """``p -= lr (sign(beta1 m + (1 - beta1) g) + weight_decay p)``, then ``m = beta2 m + (1 - beta2) g``."""

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, beta1: float, beta2: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                direction = state["mean"].lerp(p.grad, 1 - group["beta1"]).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                state["mean"].lerp_(p.grad, 1 - group["beta2"])


def make(parameters: list[nn.Parameter], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """What umscale calls, with every option."""
    return Lion(parameters, **options)


def check(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be, in one line."""
    if not options["lr"] > 0:
        raise ValueError(f"lr must be positive, not {options['lr']}")


LION = OptimizerPart(
    make=make,
    options={"lr": 6e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 1.0},
    takes="dense",
    width_exponent=1.0,  # a step moves every weight by lr, as AdamW's does
    check=check,
)
