"""`table_adamw` in C++ (table_adamw.cpp) on CPU: float32, contiguous."""

import math
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from umscale_kernels import native

_ARGUMENTS = (*[c_int64] * 3, *[c_void_p] * 3, c_int, *[c_void_p] * 3, *[c_float] * 8, c_int, c_int)


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
    all_rows: bool = False,
) -> None:
    """See `umscale_kernels.table_adamw.table_adamw`; `grad` is [U, D] over distinct `rows` [U] (None: all rows)."""
    grad = grad.contiguous()
    rows = None if rows is None else rows.contiguous()
    function = native.function("table_adamw", "umscale_table_adamw", *_ARGUMENTS)
    outside = function(
        grad.shape[0],
        *param.shape,
        None if rows is None else rows.data_ptr(),
        grad.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.dim() == 1,
        exp_avg_sq.data_ptr(),
        param.data_ptr(),
        None if shadow is None else shadow.data_ptr(),
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        1 / math.sqrt(1 - beta2**step),
        eps,
        1 - lr * weight_decay,
        lr / (1 - beta1**step),
        all_rows,
        torch.get_num_threads(),
    )
    if outside:
        raise IndexError(f"rows of the gradient must lie in [0, {param.shape[0]})")
