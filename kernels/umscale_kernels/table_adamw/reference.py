"""Readable `table_adamw`: the definition the other backends are tested against. Any dtype."""

import math

import torch
from torch import Tensor


def table_adamw(
    param: Tensor,
    grad: Tensor,
    rows: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    shadow: Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """See `umscale_kernels.table_adamw.table_adamw`; `grad` is [U, D] over distinct `rows` [U] (None: all rows)."""
    at = torch.arange(param.shape[0], device=param.device) if rows is None else rows
    square = grad.square() if exp_avg_sq.dim() == 2 else grad.square().mean(1)
    m = beta1 * exp_avg[at] + (1 - beta1) * grad  # [U, D]
    v = beta2 * exp_avg_sq[at] + (1 - beta2) * square  # [U, D] or [U]
    root = v.sqrt() / math.sqrt(1 - beta2**step) + eps
    update = m / (1 - beta1**step) / (root if root.dim() == 2 else root[:, None])
    exp_avg[at], exp_avg_sq[at] = m, v
    param[at] = (1 - lr * weight_decay) * param[at] - lr * update
    if shadow is not None:
        shadow[at] = param[at].to(shadow.dtype)
