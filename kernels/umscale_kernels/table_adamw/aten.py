"""`table_adamw` from stock PyTorch operations, for any device: whole tables in place, rows gathered and put back."""

import math

import torch
from torch import Tensor
from torch.optim.adamw import adamw


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
    tables = (param, exp_avg, exp_avg_sq)
    p, m, v = tables if rows is None else (x.index_select(0, rows) for x in tables)
    if v.dim() == 2:
        steps = torch.full((), step - 1.0, device=p.device)  # counted up before use
        adamw(
            [p], [grad], [m], [v], [], [steps],
            fused=True, amsgrad=False, maximize=False,
            lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
        )  # fmt: skip
    else:
        m.lerp_(grad, 1 - beta1)
        v.lerp_(torch.linalg.vector_norm(grad, dim=1).square_().div_(grad.shape[1]), 1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
        p.mul_(1 - lr * weight_decay).addcdiv_(m, root.unsqueeze(1), value=-lr / (1 - beta1**step))
    if rows is not None:
        for table, updated in zip(tables, (p, m, v), strict=True):
            table.index_copy_(0, rows, updated)
    if shadow is not None:
        if rows is None:
            shadow.copy_(p)
        else:
            shadow.index_copy_(0, rows, p.to(shadow.dtype))
