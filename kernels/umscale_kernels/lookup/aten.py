"""`lookup` from stock PyTorch operations, for any device, deterministic, without a [T, m, D] buffer.

* z_k = <p, P[R_k]> is the gradient of an embedding bag with respect to its per-sample weights.
* Values viewed as [c N, Dv / c] turn the per-core slices into one bag per (token, core): one call gives o.
* A table gradient is a bag over the output gradient: lookups sorted by row (stable), one bag per row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def lookup(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    n_blocks: int,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor]:
    """(o [T, n_blocks Dv], z [T, m]) in the dtype of s; z is empty without pre-values, and `p` is then ignored."""
    tokens, _, n_cores = s.shape
    rows, pre_values, values = _in_dtype(s.dtype, rows, pre_values, values)
    weight = s
    z = s.new_empty(0)
    if pre_values is not None:
        z = _dots(p, pre_values, rows)
        weight = s * (F.gelu(z) if gelu else z).unsqueeze(-1)
    starts = None
    if slots is not None:  # bags are runs: a token's lookups in order of their block
        order = slots.argsort(dim=1, stable=True)
        rows, weight = rows.gather(1, order), weight.gather(1, order.unsqueeze(-1).expand_as(weight))
        starts = _run_starts(slots.flatten(), tokens * n_blocks)
    if starts is None:
        bag_rows, weights = _core_rows(rows, n_cores), weight.transpose(1, 2).reshape(-1)
        o = _bags(_by_core(values, n_cores), bag_rows, weights)
    else:
        slices = [
            _bags(_by_core(values, n_cores), rows * n_cores + q, weight[..., q].contiguous().view(-1), starts)
            for q in range(n_cores)
        ]
        o = torch.cat(slices, 1)
    return o.view(tokens, n_blocks * values.shape[1]), z


def lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    tables: str,
    into: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, distinct rows, dP, dV); those that do not apply are empty.

    `tables`: "none", "dense" (dP [N, Dp], dV [N, Dv]), "rows" (of the U distinct rows read, ascending), or "add":
    to the dense gradients `into`.
    """
    _, m, n_cores = s.shape
    n_rows, width = values.shape
    read_rows, pre_values, values = _in_dtype(s.dtype, rows, pre_values, values)
    d_o = d_o.view(-1, width)  # [T n_blocks, Dv]
    per_core = None if slots is None else _core_rows(slots, n_cores)
    g = _dots(_by_core(d_o, n_cores), _by_core(values, n_cores), _core_rows(read_rows, n_cores), per_core)
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
        slot = token if slots is None else slots.flatten()[order]
        if tables == "dense":
            start = _run_starts(sorted_rows, n_rows)
        else:
            distinct, counts = torch.unique_consecutive(sorted_rows.long(), return_counts=True)
            start = counts.cumsum(0) - counts
        slices = d_o.unflatten(1, (n_cores, -1)).unbind(1)
        weights = weight.reshape(-1, n_cores)[order].unbind(1)
        dV = torch.cat(
            [
                _bags(x.contiguous(), slot, w.contiguous(), start)
                for x, w in zip(slices, weights, strict=True)
            ],
            1,
        )
        if pre_values is not None:
            dP = _bags(p, token, dz.reshape(-1)[order], start)
    if into is not None:
        for total, part in zip(into, (dP, dV), strict=True):
            if total is not None:
                total[distinct] += part.to(total.dtype)
        distinct, dP, dV = (x.new_empty(0) for x in (distinct, dP, dV))
    return dp, ds.contiguous(), distinct, dP, dV


def _run_starts(index: Tensor, size: int) -> Tensor:
    """Where each of `size` values begins in `index`, sorted; `index` [L] in [0, size) in any order -> [size]."""
    counts = torch.bincount(index, minlength=size)
    return counts.cumsum(0) - counts


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


def _dots(x: Tensor, table: Tensor, index: Tensor, of: Tensor | None = None) -> Tensor:
    """<x[of[b, k]], table[index[b, k]]> for every b, k; x [., D], index and `of` (by default b) [B, k] -> [B, k]."""
    flat = index.reshape(-1)
    bag_of = torch.arange(index.shape[0], device=index.device).repeat_interleave(index.shape[1])
    if of is not None:
        bag_of = of.reshape(-1).to(flat.dtype)
    starts = _starts(index)
    out = torch.ops.aten._embedding_bag_per_sample_weights_backward(x, table, flat, starts, bag_of, 0, -1)
    return out.view(index.shape)
