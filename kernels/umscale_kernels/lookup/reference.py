"""Readable `lookup`: the definition the other backends are tested against. Materialises [T, m, D]; any dtype."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def lookup(
    p: Tensor | None,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    n_blocks: int,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str = "none",
    sparse_grad: bool = False,
    source: tuple[Tensor | None, Tensor] | None = None,
) -> Tensor:
    """See `umscale_kernels.lookup.lookup`; `source` are the tables read, `slots` [T, m] rows of o [T n_blocks, Dv]."""
    rows = rows.long()
    read_pre_values, read_values = (pre_values, values) if source is None else source
    dtype = torch.float64 if read_values.dtype == torch.float64 else torch.float32
    weight_TxMxC = s.to(dtype)
    if p is not None and pre_values is not None and read_pre_values is not None:
        pre_values_TxMxD = _gather(pre_values, read_pre_values, rows, dtype, sparse_grad)
        z_TxM = torch.einsum("td,tmd->tm", p.to(dtype), pre_values_TxMxD)
        weight_TxMxC = weight_TxMxC * (F.gelu(z_TxM) if activation == "gelu" else z_TxM).unsqueeze(-1)
    values_TxMxD = _gather(values, read_values, rows, dtype, sparse_grad)
    values_TxMxCxD = values_TxMxD.unflatten(-1, (s.shape[-1], -1))
    if slots is None:
        return torch.einsum("tmc,tmcd->tcd", weight_TxMxC, values_TxMxCxD).flatten(1)
    weighted_TxMxD = (weight_TxMxC.unsqueeze(-1) * values_TxMxCxD).flatten(2)
    o = weighted_TxMxD.new_zeros(s.shape[0] * n_blocks, values.shape[1])
    return o.index_add(0, slots.flatten(), weighted_TxMxD.flatten(0, 1)).view(s.shape[0], -1)


def _gather(table: Tensor, read: Tensor, rows: Tensor, dtype: torch.dtype, sparse_grad: bool) -> Tensor:
    """`read[rows]` [T, m, D], with the gradient going to `table`."""
    is_copy = read is not table
    if sparse_grad:
        distinct, rows = rows.unique(return_inverse=True)
        table = _TakeRows.apply(table, distinct)
        read = read[distinct] if is_copy else table
    gathered = table.to(dtype)[rows]
    if is_copy:
        return read.detach().to(dtype)[rows] + (gathered - gathered.detach())  # the bracket is 0
    return gathered


class _TakeRows(torch.autograd.Function):
    """`table[distinct]`, with a row-sparse gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, distinct: Tensor) -> Tensor:
        ctx.save_for_backward(distinct)
        ctx.shape = table.shape
        return table[distinct]

    @staticmethod
    def backward(ctx: Any, d_taken: Tensor) -> tuple[Tensor, None]:
        (distinct,) = ctx.saved_tensors
        gradient = torch.sparse_coo_tensor(
            distinct[None], d_taken, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return gradient, None
