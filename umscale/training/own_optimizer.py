"""AdamW beside another optimiser that takes a part of the parameters: one to the training loop."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from umscale import parts
from umscale.errors import UserError
from umscale.parts import OptimizerPart
from umscale.spec import OptimizerSpec


def taken(model: nn.Module, spec: OptimizerSpec, tables: Collection[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters of ``model``, ``tables`` aside, that the optimiser of ``spec`` takes; none for AdamW."""
    if spec.kind == "adamw":
        return []
    part: OptimizerPart = parts.require("optimizers", spec.kind, spec.package).load(OptimizerPart)
    if part.takes == "dense":
        return [p for p in model.parameters() if p not in tables]
    linear = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return [
        p for name, p in linear.items() if isinstance(p, nn.Parameter) and name != "head" and p not in tables
    ]


def make_own(parameters: list[nn.Parameter], spec: OptimizerSpec, rate: float) -> torch.optim.Optimizer:
    """Return the optimiser of ``spec`` for ``parameters``, at a peak learning rate of ``rate``.

    Raises:
        UserError: its package is not installed here, or it does not return an optimiser.
    """
    found = parts.require("optimizers", spec.kind, spec.package)
    part: OptimizerPart = found.load(OptimizerPart)
    made = part.make(parameters, {**part.options, **spec.options, "lr": rate})
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(f"{found.noun}: make() returned {type(made).__name__}, no torch.optim.Optimizer")
    return made


class Together(torch.optim.Optimizer):
    """Two optimisers of different parameters, with their groups in one list and their states in one place.

    The groups of ``own`` follow the dense schedule times ``factor``.
    """

    def __init__(self, adamw: torch.optim.Optimizer, own: torch.optim.Optimizer, factor: float) -> None:
        for group in own.param_groups:
            group |= {"schedule": "dense", "factor": factor}
        super().__init__([*adamw.param_groups, *own.param_groups], {})
        self.adamw, self.own = adamw, own
        adamw.state.update(own.state)
        self.state = own.state = adamw.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; closures are not supported.

        After a gradient that was not finite (``found_inf``, on the device) AdamW stands still, and the other takes a
        gradient of zeros: it knows no such mark, and asking the device would be waiting for it.
        """
        broken: Any = getattr(self, "found_inf", None)
        if broken is not None:
            self.adamw.found_inf = broken  # type: ignore[attr-defined]
            for group in self.own.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.masked_fill_(broken.bool(), 0.0)
        self.adamw.step()
        self.own.step()
