"""`select` from stock PyTorch operations, for any device: tokens in chunks, so the grid stays in cache.

Top-k with ties to the lowest index: the value and the inverted index share one int64 key, so keys are distinct and
an unsorted `topk` is exact. Wide inputs are first cut to the k groups of neighbours with the largest maxima (equal
maxima: the lower group). An element outside them is outranked by one element of each, so it is not in the top k.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from umscale_kernels.select import reference

_CHUNK_ELEMENTS = 1 << 18  # grid cells per chunk: 1 MiB of fp32
_MIN_WIDTH_TO_GROUP = 512


def _keys(x: Tensor, index: Tensor) -> Tensor:
    """int64 keys that order float32 `x` by larger value, then by lower `index` (non-negative)."""
    bits = (x + 0.0).view(torch.int32)  # + 0.0: -0 and 0 are equal
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return torch.sub(0xFFFFFFFF, index).add(bits.long(), alpha=1 << 32)


def _index_of(keys: Tensor) -> Tensor:
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def largest(x: Tensor, k: int) -> Tensor:
    """Ascending indices of the k largest of the last axis; equal values: the lower index first."""
    n = x.shape[-1]
    index = torch.arange(n, device=x.device)
    if k == n:
        return index.expand(x.shape)
    if x.dtype == torch.float64:
        return reference.largest(x, k)
    size = int((n / k) ** 0.5)
    if n >= _MIN_WIDTH_TO_GROUP and size > 1:
        groups = F.pad(x, (0, -n % size), value=-torch.inf).unflatten(-1, (-1, size))
        best = _index_of(_keys(groups.amax(-1), index[: groups.shape[-2]]).topk(k, sorted=False).values)
        index = (best.unsqueeze(-1) * size + index[:size]).flatten(-2)
        x = groups.gather(-2, best.unsqueeze(-1).expand(*best.shape, size)).flatten(-2)
    kept = _index_of(_keys(x, index).topk(k, sorted=False).values).sort(dim=-1).values
    return kept.clamp(max=n - 1)  # a NaN may rank below the padding


def select(
    scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `umscale_kernels.select.select`. Not differentiable by autograd: see `select_backward`."""
    tokens, heads = scores.shape[-2], scores.shape[:-4].numel()
    core = reference.core_sum(cores)
    step = max(1, _CHUNK_ELEMENTS // (heads * preselect_m * preselect_m))
    chosen = []
    for start in range(0, max(tokens, 1), step):
        chunk = scores[..., start : start + step, :]
        row_side, col_side = chunk[..., 0, :, :, :], chunk[..., 1, :, :, :]
        rows = largest(reference.side_scores(row_side, u), preselect_m)
        cols = largest(reference.side_scores(col_side, v), preselect_m)
        rows_A, cols_B = reference.gather_keys(row_side, rows), reference.gather_keys(col_side, cols)
        cell = largest(reference.totals(rows_A, cols_B, core).flatten(-2), top_m)
        chosen.append((rows.gather(-1, cell // preselect_m), cols.gather(-1, cell % preselect_m)))
    row, col = (torch.cat(parts, -2) for parts in zip(*chosen, strict=True))
    return row, col, _contract(*_gathered(scores, row, col), cores)


def select_backward(
    ds: Tensor, scores: Tensor, cores: Tensor, row: Tensor, col: Tensor
) -> tuple[Tensor, Tensor]:
    """(dscores, dcores) of s = kept_scores(scores, cores, row, col). On CUDA the scatter is not deterministic."""
    rows_A, cols_B = _gathered(scores, row, col)
    d_pair = torch.einsum("...tkq,...qab->...abtk", ds, cores)  # [.., r, r, T, m]
    d_rows = (d_pair * cols_B.unsqueeze(-4)).sum(-3)
    d_cols = (d_pair * rows_A.unsqueeze(-3)).sum(-4)
    d_scores = torch.zeros_like(scores)
    for side, ids, d_side in ((0, row, d_rows), (1, col, d_cols)):
        d_scores[..., side, :, :, :].scatter_add_(-1, ids.unsqueeze(-3).expand_as(d_side), d_side)
    d_cores = torch.einsum("...tkq,...atk,...btk->...qab", ds, rows_A, cols_B)
    return d_scores, d_cores


def _gathered(scores: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """S[row] and S[col] at the kept keys, each [.., r, T, m]."""
    return (
        reference.gather_keys(scores[..., 0, :, :, :], row),
        reference.gather_keys(scores[..., 1, :, :, :], col),
    )


def _contract(rows_A: Tensor, cols_B: Tensor, cores: Tensor) -> Tensor:
    """sum_ab rows_A[a] C_q[a, b] cols_B[b] -> [.., T, m, c], without a [T, m, r, r] intermediate per core."""
    out = []
    for q in range(cores.shape[-3]):
        core = cores[..., q, :, :]
        parts = [
            reference.side_scores(rows_A, core[..., :, b]) * cols_B[..., b, :, :]
            for b in range(core.shape[-1])
        ]
        out.append(torch.stack(parts).sum(0))
    return torch.stack(out, -1)
