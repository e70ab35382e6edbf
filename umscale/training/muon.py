"""Muon for the matrices inside blocks: torch's, as an optimiser of ``umscale.parts``.

A step moves a matrix by the orthogonal factor of its momentum, found by five Newton-Schulz iterations in bfloat16,
times ``lr sqrt(max(1, outputs / inputs))`` (https://kellerjordan.github.io/posts/muon/). So all singular values of a
step are about ``lr``, whatever the width. Imports no torch until used.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from umscale.parts import OptimizerPart

if TYPE_CHECKING:
    import torch
    from torch import nn


def _make(parameters: "list[nn.Parameter]", options: Mapping[str, Any]) -> "torch.optim.Optimizer":
    import torch

    return torch.optim.Muon(parameters, **options)


def _check(options: Mapping[str, Any]) -> None:
    for name in ("lr", "ns_steps"):
        if not options[name] > 0:
            raise ValueError(f"{name} must be positive, not {options[name]}")
    if not 0 <= options["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), not {options['momentum']}")
    if options["weight_decay"] < 0:
        raise ValueError(f"weight_decay must not be negative, not {options['weight_decay']}")
    if options["ns_steps"] > 20:
        raise ValueError(f"ns_steps must be at most 20, not {options['ns_steps']}")


MUON = OptimizerPart(
    make=_make,
    # At the default rates a step takes off the share that AdamW's does: 0.02 * 0.03 is 6e-3 * 0.1.
    options={"lr": 0.02, "momentum": 0.95, "nesterov": True, "weight_decay": 0.03, "ns_steps": 5},
    check=_check,
)
