"""`row_dots`: z_k = <p, T[R_k]>, the first half of `lookup`, for tables of which a process holds some columns.

Partial z add up over the columns; only their sum may be activated, so the two halves must come apart. No backend needs
a kernel for it: with table T, weights z and no pre-values, `lookup` has the output sum_k z_k T[R_k], and its gradients
with respect to weights and table, given p in place of the output's gradient, are <p, T[R_k]> and z_k p. So forward and
backward here are backward and forward there.
"""

from typing import Any

import torch
from torch import Tensor

from umscale_kernels.lookup import _lookup, _lookup_backward, _lookup_row_gradients, _row_sparse


def row_dots(
    p: Tensor,
    rows: Tensor,
    table: Tensor,
    *,
    sparse_grad: bool = False,
    read: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """z [T, m], float32 (float64 for float64 tables), of `p` [T, D], `rows` [T, m] in [0, N) and `table` [N, D].

    `sparse_grad`, `read` and `backend` as in `umscale_kernels.lookup`. Raises ValueError on shapes that do not fit.
    """
    if rows.shape[0] != p.shape[0] or p.shape[1] != table.shape[1]:
        raise ValueError(f"p {list(p.shape)} and rows {list(rows.shape)} do not fit {list(table.shape)}")
    source = table if read is None else read
    z: Tensor = _RowDots.apply(p, rows, table, source.detach(), sparse_grad, backend)
    return z


class _RowDots(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, p: Tensor, rows: Tensor, table: Tensor, read: Tensor, sparse_grad: bool, backend: str
    ) -> Tensor:
        ctx.save_for_backward(p, rows, read)
        ctx.options = sparse_grad, backend, table.dtype
        unused, weights = p.new_empty(0), p.new_zeros(*rows.shape, 1)
        inputs = (p, unused, weights, unused, rows, None, None, read, "none")
        return _lookup_backward(*inputs, False, "sorted", backend)[1].squeeze(-1)

    @staticmethod
    def backward(ctx: Any, d_z: Tensor) -> tuple[Tensor | None, ...]:
        p, rows, read = ctx.saved_tensors
        sparse_grad, backend, dtype = ctx.options
        unused, weights = p.new_empty(0), d_z.unsqueeze(-1)
        d_p = d_table = None
        if ctx.needs_input_grad[0]:
            tables = (None, read, None, read)
            options = (1, "none", False, "sorted", backend)
            d_p = _lookup(unused, weights, rows, None, *tables, *options)[0].to(p.dtype)
        if ctx.needs_input_grad[2]:
            inputs = (p, unused, weights, unused, rows, None, None, read, "none")
            if sparse_grad:
                _, _, distinct, _, gradients = _lookup_row_gradients(*inputs, backend)
                d_table = _row_sparse(distinct, gradients.to(dtype), read.shape[0])
            else:
                d_table = _lookup_backward(*inputs, True, "sorted", backend)[3].to(dtype)
        return d_p, None, d_table, None, None, None
