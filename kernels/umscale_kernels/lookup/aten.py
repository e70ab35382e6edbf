"""`lookup` from stock PyTorch operations, for any device, deterministic, without a [T, m, D] buffer.

* z_k = <p, P[R_k]> is the gradient of an embedding bag with respect to its per-sample weights.
* Values viewed as [c N, Dv / c] turn the per-core slices into one bag per (token, core): one call gives o.
* A table gradient is a bag over the output gradient: lookups sorted by row (stable), one bag per row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def lookup(
    p: Tensor, s: Tensor, rows: Tensor, pre_values: Tensor | None, values: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """(o [T, Dv], z [T, m]) in the dtype of s; z is empty without pre-values, and `p` is then ignored."""
    tokens, _, n_cores = s.shape
    rows, pre_values, values = _in_dtype(s.dtype, rows, pre_values, values)
    weight_TxCxM = s.transpose(1, 2)
    z = s.new_empty(0)
    if pre_values is not None:
        z = _dots(p, pre_values, rows)
        weight_TxCxM = weight_TxCxM * (F.gelu(z) if gelu else z).unsqueeze(1)
    bag_rows = _core_rows(rows, n_cores)
    o = _bags(_by_core(values, n_cores), bag_rows, weight_TxCxM.reshape(-1))
    return o.view(tokens, values.shape[1]), z


def lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    tables: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, distinct rows, dP, dV); those that do not apply are empty.

    `tables`: "none", "dense" (dP [N, Dp], dV [N, Dv]) or "rows" (of the U distinct rows read, ascending).
    """
    _, m, n_cores = s.shape
    n_rows = values.shape[0]
    read_rows, pre_values, values = _in_dtype(s.dtype, rows, pre_values, values)
    g = _dots(_by_core(d_o, n_cores), _by_core(values, n_cores), _core_rows(read_rows, n_cores))
    g_TxMxC = g.view(-1, n_cores, m).transpose(1, 2)
    dp, dP, dV = (s.new_empty(0) for _ in range(3))  # outputs of an operator must not share memory
    distinct, dz = rows.new_empty(0, dtype=torch.int64), dp
    ds, weight = g_TxMxC, s
    if pre_values is not None:
        h = (F.gelu(z) if gelu else z).unsqueeze(-1)
        ds, weight = g_TxMxC * h, s * h
        dz = (s * g_TxMxC).sum(-1)
        dz = torch.ops.aten.gelu_backward(dz, z) if gelu else dz
        dp = _bags(pre_values, read_rows, dz.reshape(-1))
    if tables != "none":
        sorted_rows, order = rows.reshape(-1).sort(stable=True)
        token = order // m
        if tables == "dense":
            start = torch.bincount(sorted_rows, minlength=n_rows).cumsum(0).roll(1)
            start[0] = 0
        else:
            distinct, counts = torch.unique_consecutive(sorted_rows.long(), return_counts=True)
            start = counts.cumsum(0) - counts
        slices = d_o.unflatten(1, (n_cores, -1)).unbind(1)
        weights = weight.reshape(-1, n_cores)[order].unbind(1)
        per_core = [
            _bags(x.contiguous(), token, w.contiguous(), start) for x, w in zip(slices, weights, strict=True)
        ]
        dV = torch.cat(per_core, 1)
        if pre_values is not None:
            dP = _bags(p, token, dz.reshape(-1)[order], start)
    return dp, ds.contiguous(), distinct, dP, dV


def _in_dtype(
    dtype: torch.dtype, rows: Tensor, pre_values: Tensor | None, values: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The operands with tables of the given dtype: converted whole, or only the rows read when those are fewer."""
    if values.dtype == dtype:
        return rows, pre_values, values
    if rows.numel() < values.shape[0]:
        distinct, rows = rows.unique(return_inverse=True)
        values = values[distinct]
        pre_values = None if pre_values is None else pre_values[distinct]
    return rows, None if pre_values is None else pre_values.to(dtype), values.to(dtype)


def _by_core(values: Tensor, n_cores: int) -> Tensor:
    """[N, Dv] -> [c N, Dv / c]: slice q of row R is row c R + q."""
    return values.view(values.shape[0] * n_cores, values.shape[1] // n_cores)


def _core_rows(rows: Tensor, n_cores: int) -> Tensor:
    """Rows [T, m] -> [T c, m] of the per-core view."""
    core = torch.arange(n_cores, device=rows.device).view(1, -1, 1)
    return (rows.unsqueeze(1) * n_cores + core).flatten(0, 1)


def _starts(index: Tensor) -> Tensor:
    return torch.arange(0, index.numel(), index.shape[1], device=index.device)


def _bags(table: Tensor, index: Tensor, weight: Tensor, starts: Tensor | None = None) -> Tensor:
    """out[b] = sum of weight * table[index] over bag b; bags are the rows of a 2-D index unless `starts` is given."""
    starts = _starts(index) if starts is None else starts
    if index.numel() == 0:
        return table.new_zeros(starts.numel(), table.shape[1])
    return torch.embedding_bag(table, index.reshape(-1), starts, per_sample_weights=weight)[0]


def _dots(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """<x[b], table[index[b, k]]> for every b, k; x [B, D], index [B, k] -> [B, k]."""
    flat = index.reshape(-1)
    bag_of = torch.arange(index.shape[0], device=index.device).repeat_interleave(index.shape[1])
    starts = _starts(index)
    out = torch.ops.aten._embedding_bag_per_sample_weights_backward(x, table, flat, starts, bag_of, 0, -1)
    return out.view(index.shape)
