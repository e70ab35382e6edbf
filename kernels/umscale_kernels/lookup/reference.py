"""Readable `lookup`: the definition the other backends are tested against. Materialises [T, m, D]; any dtype."""

import torch
from torch import Tensor


def lookup(p: Tensor | None, s: Tensor, rows: Tensor, pre_values: Tensor | None, values: Tensor) -> Tensor:
    """See `umscale_kernels.lookup.lookup`."""
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    rows, weight_TxMxC = rows.long(), s.to(dtype)
    if p is not None and pre_values is not None:
        z_TxM = torch.einsum("td,tmd->tm", p.to(dtype), pre_values.to(dtype)[rows])
        weight_TxMxC = weight_TxMxC * z_TxM.unsqueeze(-1)
    values_TxMxCxD = values.to(dtype)[rows].unflatten(-1, (s.shape[-1], -1))
    return torch.einsum("tmc,tmcd->tcd", weight_TxMxC, values_TxMxCxD).flatten(1)
