"""`table_adamw`: AdamW on a value table, in one pass, for dense and row-sparse gradients.

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g²
    p = (1 - lr weight_decay) p - lr (m / (1 - beta1^t)) / ((v / (1 - beta2^t))^(1/2) + eps)

AdamW (arXiv 1711.05101), bias correction as in `torch.optim.AdamW`. The second moment may be one number a row, the
mean of its g², as in FBGEMM's partial row-wise Adam.
"""

import importlib
from collections.abc import Iterator

import torch
from torch import Tensor

from umscale_kernels.backends import resolve

_PIECE_NUMBERS = 2**24
"""Of a table whose dense gradient is formed a piece at a time."""


def table_adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    shadow: Tensor | None = None,
    lazy: bool = True,
    backend: str = "auto",
) -> None:
    """Update `param` [N, D], its moments and its bfloat16 copy `shadow` [N, D] in place. No autograd.

    `grad` is [N, D], or a coalesced sparse COO tensor over distinct rows. A row-sparse gradient is lazy AdamW: only
    the rows it holds change. Moments and weight decay of all others stand still, and bias correction takes the
    common `step`, so the result equals AdamW on the dense gradient only when every row is touched at every step.
    With `lazy=False` it stands for the dense gradient, and the result is that of AdamW, bit for bit; no more than a
    piece of the dense one is formed, on the CPU none.

    `exp_avg` is [N, D]; `exp_avg_sq` is [N, D] or, for one second moment a row, [N]. `step` counts updates from 1
    and includes this one. `shadow` gets `param` rounded to nearest even on the rows that change. All tensors but
    `shadow` have one dtype. Raises ValueError on operands that do not fit together, IndexError on rows out of
    range (CPU).
    """
    n_rows, width = param.shape
    rows = None
    written = [x for x in (param, exp_avg, exp_avg_sq, shadow) if x is not None]
    supported = param.dtype == torch.float32 and all(x.is_contiguous() for x in written)
    name = resolve("table_adamw", backend, param.device.type, param.dtype, supported, supported)
    if grad.is_sparse and not lazy and name != "native" and grad.shape == param.shape:
        for piece, part in _dense_pieces(grad):
            table_adamw(
                param[piece], part, exp_avg[piece], exp_avg_sq[piece], step, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
                weight_decay=weight_decay, shadow=None if shadow is None else shadow[piece], backend=backend,
            )  # fmt: skip
        return
    if grad.is_sparse:
        if not grad.is_coalesced() or grad.sparse_dim() != 1:
            raise ValueError("a sparse gradient must be coalesced, with one sparse dimension: the rows")
        rows, values = grad.indices()[0], grad.values()
    else:
        values = grad
    if grad.shape != param.shape or exp_avg.shape != param.shape:
        raise ValueError(
            f"grad {list(grad.shape)} and exp_avg {list(exp_avg.shape)} must be [{n_rows}, {width}]"
        )
    if exp_avg_sq.shape not in (param.shape, param.shape[:1]):
        raise ValueError(
            f"exp_avg_sq must be [{n_rows}, {width}] or [{n_rows}], not {list(exp_avg_sq.shape)}"
        )
    if not grad.dtype == exp_avg.dtype == exp_avg_sq.dtype == param.dtype:
        raise ValueError(f"gradient and moments must be {param.dtype}, as the table is")
    if shadow is not None and (shadow.shape != param.shape or shadow.dtype != torch.bfloat16):
        raise ValueError(
            f"shadow must be bfloat16 [{n_rows}, {width}], not {shadow.dtype} {list(shadow.shape)}"
        )
    if step < 1:
        raise ValueError(f"step counts from 1, not {step}")
    if values.numel() == 0 and (lazy or param.numel() == 0):
        return
    _table_adamw(
        param.detach(), values.detach(), rows, exp_avg, exp_avg_sq, shadow, step, lr, beta1, beta2, eps, weight_decay,
        not lazy, name,
    )  # fmt: skip


def _dense_pieces(grad: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and the dense gradient there, of `grad` with distinct, ascending rows."""
    rows, values = grad.indices()[0], grad.values()
    n_rows, width = grad.shape
    size = 16 * max(1, _PIECE_NUMBERS // (16 * width))  # vectors end where those of the whole do
    starts = range(0, n_rows, size)
    places = torch.searchsorted(rows, torch.tensor([*starts, n_rows], device=rows.device)).tolist()
    for start, first, end in zip(starts, places[:-1], places[1:], strict=True):
        piece = slice(start, min(start + size, n_rows))
        part = values.new_zeros(piece.stop - start, width)
        yield piece, part.index_copy_(0, rows[first:end] - start, values[first:end])


@torch.library.custom_op("umscale::table_adamw", mutates_args=("param", "exp_avg", "exp_avg_sq", "shadow"))
def _table_adamw(
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
    all_rows: bool,
    name: str,
) -> None:
    module = importlib.import_module(f"umscale_kernels.table_adamw.{name}")  # Triton may be missing
    operands = (param, grad, rows, exp_avg, exp_avg_sq, shadow, step, lr, beta1, beta2, eps, weight_decay)
    module.table_adamw(*operands, *((all_rows,) if name == "native" else ()))
