"""`table_adamw` in one Triton kernel: a program updates a [BLOCK_R, BLOCK_D] tile of rows in one pass.

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g²     (v of a whole row: the mean of its g²)
    p = decay p - rate m / (v^(1/2) / (1 - beta2^t)^(1/2) + eps)        decay = 1 - lr wd, rate = lr / (1 - beta1^t)
    shadow = bfloat16(p)

A dense gradient with a full second moment needs no rows: the table is taken as one column of N D elements.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024  # elements a program


@triton.jit
def _bf16_bits(x: tl.tensor) -> tl.tensor:
    """Round to nearest, ties to even, NaN stays NaN; in integers, because Triton's interpreter truncates."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, rounded) >> 16).to(tl.int16)


@triton.jit
def _kernel(
    param_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    exp_avg_ptr: tl.tensor,
    exp_avg_sq_ptr: tl.tensor,
    shadow_ptr: tl.tensor,
    n_updated: tl.tensor,
    beta1: tl.tensor,
    one_minus_beta1: tl.tensor,
    beta2: tl.tensor,
    one_minus_beta2: tl.tensor,
    correction: tl.tensor,
    eps: tl.tensor,
    decay: tl.tensor,
    rate: tl.tensor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SOME_ROWS: tl.constexpr,
    ROW_WISE: tl.constexpr,
    HAS_SHADOW: tl.constexpr,
) -> None:
    k = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # [R]
    col = tl.arange(0, BLOCK_D)[None, :]
    live = k < n_updated
    mask = live[:, None] & (col < D)  # [R, D]
    rows = k
    if SOME_ROWS:
        rows = tl.load(rows_ptr + k, mask=live, other=0)
    at = rows[:, None] * D + col
    g = tl.load(grad_ptr + k[:, None] * D + col, mask=mask, other=0.0)
    p = tl.load(param_ptr + at, mask=mask, other=0.0)
    m = tl.load(exp_avg_ptr + at, mask=mask, other=0.0)
    m = beta1 * m + one_minus_beta1 * g
    if ROW_WISE:
        v = tl.load(exp_avg_sq_ptr + rows, mask=live, other=0.0)  # [R]
        v = beta2 * v + one_minus_beta2 * (tl.sum(g * g, axis=1) / D)
        tl.store(exp_avg_sq_ptr + rows, v, mask=live)
        p = decay * p - (rate / (tl.sqrt(v) * correction + eps))[:, None] * m
    else:
        v = tl.load(exp_avg_sq_ptr + at, mask=mask, other=0.0)  # [R, D]
        v = beta2 * v + one_minus_beta2 * (g * g)
        tl.store(exp_avg_sq_ptr + at, v, mask=mask)
        p = decay * p - rate * m / (tl.sqrt(v) * correction + eps)
    tl.store(exp_avg_ptr + at, m, mask=mask)
    tl.store(param_ptr + at, p, mask=mask)
    if HAS_SHADOW:
        tl.store(shadow_ptr + at, _bf16_bits(p), mask=mask)


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
    row_wise = exp_avg_sq.dim() == 1
    n_updated, width = grad.shape
    if rows is None and not row_wise:
        n_updated, width = grad.numel(), 1
    block_d = triton.next_power_of_2(width)
    block_r = max(1, _TILE // block_d)
    _kernel[(triton.cdiv(n_updated, block_r),)](
        param,
        grad.contiguous(),
        rows if rows is None else rows.contiguous(),
        exp_avg,
        exp_avg_sq,
        None if shadow is None else shadow.view(torch.int16),
        n_updated,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        1 / math.sqrt(1 - beta2**step),
        eps,
        1 - lr * weight_decay,
        lr / (1 - beta1**step),
        D=width,
        BLOCK_D=block_d,
        BLOCK_R=block_r,
        SOME_ROWS=rows is not None,
        ROW_WISE=row_wise,
        HAS_SHADOW=shadow is not None,
        num_warps=4 if block_d <= _TILE else 8,
    )
