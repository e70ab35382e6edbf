"""Readable `select`: the definition the other backends are tested against. Materialises [T, m1, m1]; any dtype."""

from collections.abc import Callable

import torch
from torch import Tensor


def side_scores(scores: Tensor, vector: Tensor) -> Tensor:
    """sum_a vector_a scores[.., a, t, i] -> [.., T, n], added in ascending a with every product rounded.

    The order is part of the definition: selection is discrete, and a fixed order lets all backends agree bit for
    bit on fp32 scores.
    """
    total = vector[..., 0, None, None] * scores[..., 0, :, :]
    for a in range(1, scores.shape[-3]):
        total = total + vector[..., a, None, None] * scores[..., a, :, :]
    return total


def totals(rows_A: Tensor, cols_B: Tensor, core: Tensor) -> Tensor:
    """sum_ab rows_A[.., a, t, i] core[.., a, b] cols_B[.., b, t, j] -> [.., T, m1, m1], in a fixed order."""
    rank = core.shape[-1]
    weighted = [side_scores(rows_A, core[..., :, b]) for b in range(rank)]
    total = weighted[0][..., :, None] * cols_B[..., 0, :, None, :]
    for b in range(1, rank):
        total = total + weighted[b][..., :, None] * cols_B[..., b, :, None, :]
    return total


def core_sum(cores: Tensor) -> Tensor:
    """Sum over the cores [.., c, r, r] -> [.., r, r], in ascending order."""
    total = cores[..., 0, :, :]
    for q in range(1, cores.shape[-3]):
        total = total + cores[..., q, :, :]
    return total


def largest(x: Tensor, k: int) -> Tensor:
    """Ascending indices of the k largest of the last axis; equal values: the lower index first."""
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :k].sort(dim=-1).values


def gather_keys(side: Tensor, ids: Tensor) -> Tensor:
    """Entries `ids` [.., T, k] of scores [.., r, T, n] -> [.., r, T, k]."""
    ids = ids.unsqueeze(-3)
    return side.gather(-1, ids.expand(*side.shape[:-1], ids.shape[-1]))


def kept_scores(scores: Tensor, cores: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """s[.., t, k, q] = sum_ab S[row, a]_row C_q[a, b] S[col, b]_col, differentiable in scores and cores."""
    rows_A, cols_B = gather_keys(scores[..., 0, :, :, :], row), gather_keys(scores[..., 1, :, :, :], col)
    return torch.einsum("...atk,...qab,...btk->...tkq", rows_A, cores, cols_B)


def search(
    scores: Tensor,
    u: Tensor,
    v: Tensor,
    core: Tensor,
    top_m: int,
    preselect_m: int,
    quadrants: int = 1,
    largest: Callable[[Tensor, int], Tensor] = largest,
) -> tuple[Tensor, Tensor]:
    """(row, col) [.., T, m] of the kept pairs, ascending; `core` [.., r, r] is the sum of the cores."""
    row_side, col_side = scores[..., 0, :, :, :], scores[..., 1, :, :, :]
    a, b = side_scores(row_side, u), side_scores(col_side, v)

    def grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, cols = largest(a, preselect_m), largest(b, preselect_m)
        total = totals(gather_keys(row_side, rows), gather_keys(col_side, cols), core)
        return rows, cols, total.flatten(-2)

    rows, cols, total = grid(a, b)
    if quadrants == 1:
        cell = largest(total, top_m)
        return rows.gather(-1, cell // preselect_m), cols.gather(-1, cell % preselect_m)

    low_rows, low_cols, low_total = grid(-a, -b)
    in_rows = (low_rows.unsqueeze(-1) == rows.unsqueeze(-2)).any(-1)
    in_cols = (low_cols.unsqueeze(-1) == cols.unsqueeze(-2)).any(-1)
    twice = (in_rows.unsqueeze(-1) & in_cols.unsqueeze(-2)).flatten(-2)
    n = scores.shape[-1]
    pairs = [
        (i.unsqueeze(-1) * n + j.unsqueeze(-2)).flatten(-2) for i, j in ((rows, cols), (low_rows, low_cols))
    ]
    pair, order = torch.cat(pairs, -1).sort(dim=-1)
    total = torch.cat((total, low_total.masked_fill(twice, -torch.inf)), -1).gather(-1, order)
    pair = pair.gather(-1, largest(total, top_m))
    return pair // n, pair % n


def select(
    scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int, quadrants: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """See `umscale_kernels.select.select`."""
    with torch.no_grad():
        row, col = search(scores, u, v, core_sum(cores), top_m, preselect_m, quadrants)
    return row, col, kept_scores(scores, cores, row, col)
