"""`select` from stock PyTorch operations, for any device: tokens in chunks, so the grid stays in cache.

Two ways to the k largest. Unless an element equal to the k-th is left out, any `topk` is right, in any order; one
comparison tells. Otherwise ties go to the lowest index: the value and the inverted index share one int64 key, so
keys are distinct and an unsorted `topk` is exact.

Both first cut wide inputs to the k groups with the largest maxima: an element outside them is outranked by one
element of each, so it is not in the top k. With ties that takes groups of neighbours, and of equal maxima the lower.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from umscale_kernels.select import reference

# Grid cells per chunk: 1 MiB of fp32 in a processor's cache; on a GPU enough to fill it (256 MiB).
_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
_MIN_WIDTH_TO_GROUP = 1024


def _ordered_bits(x: Tensor) -> Tensor:
    """int32 that orders float32 `x`, -0 below 0."""
    bits = x.view(torch.int32)
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def _keys(x: Tensor, index: Tensor) -> Tensor:
    """int64 keys that order float32 `x` by larger value, then by lower `index` (non-negative)."""
    bits = _ordered_bits(x + 0.0)  # + 0.0: -0 and 0 are equal
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


def _clear_largest(x: Tensor, k: int) -> Tensor | None:
    """Indices of the k largest of the last axis of float32 `x`, in no order; None if an equal one is left out."""
    n = x.shape[-1]
    if k == n:
        return torch.arange(n, device=x.device).expand(x.shape)
    size = 1 << ((n // k).bit_length() - 1) // 2
    if n < _MIN_WIDTH_TO_GROUP or size == 1:
        top = _ordered_bits(x).topk(k, sorted=False)  # integers compare faster than floats, which may be NaN
        lowest = top.values.amin(-1, keepdim=True).view(torch.float32)
        threshold = _ordered_bits(lowest).view(torch.float32)  # the map is its own inverse
        return top.indices if (x >= threshold).count_nonzero() == top.indices.numel() else None
    # Group g: the elements g, g + height, g + 2 height ..; maxima of whole vectors.
    groups = (F.pad(x, (0, -n % size), value=-torch.inf) if n % size else x).unflatten(-1, (size, -1))
    best = _clear_largest(groups.amax(-2), k)
    if best is None:
        return None
    best = best.unsqueeze(-2)
    kept = _clear_largest(groups.gather(-1, best.expand(*groups.shape[:-1], k)).flatten(-2), k)
    if kept is None:
        return None
    first = groups.shape[-1] * torch.arange(size, device=x.device).unsqueeze(-1)
    return (best + first).flatten(-2).gather(-1, kept).clamp_(max=n - 1)  # a NaN may rank below the padding


def _search_clear(
    scores: Tensor, u: Tensor, v: Tensor, core: Tensor, top_m: int, preselect_m: int
) -> tuple[Tensor, Tensor] | None:
    """`reference.search` of float32 scores, or None if equal scores meet at a threshold."""
    sides = reference.side_scores(scores, torch.stack((u, v), -2))  # [.., 2, T, n]
    ids = _clear_largest(sides, preselect_m)
    if ids is None:
        return None
    rows_A, cols_B = reference.gather_keys(scores, ids).unbind(-4)
    cell = _clear_largest(reference.totals(rows_A, cols_B, core).flatten(-2), top_m)
    if cell is None:
        return None
    n, i = scores.shape[-1], cell // preselect_m
    row, col = ids.unbind(-3)
    pair = row.gather(-1, i) * n + col.gather(-1, torch.sub(cell, i, alpha=preselect_m))
    pair = pair.sort(dim=-1).values
    row = pair // n
    return row, torch.sub(pair, row, alpha=n)


def select(
    scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int, quadrants: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """See `umscale_kernels.select.select`. Not differentiable by autograd: see `select_backward`."""
    tokens, heads = scores.shape[-2], scores.shape[:-4].numel()
    core = reference.core_sum(cores)
    elements = _CHUNK_ELEMENTS.get(scores.device.type, _CHUNK_ELEMENTS["cuda"])
    step = max(1, elements // (heads * preselect_m * preselect_m))
    # On a GPU the answer to "were there ties?" would stall the host.
    may_be_clear = quadrants == 1 and scores.device.type == "cpu" and scores.dtype == torch.float32
    chosen = []
    for start in range(0, max(tokens, 1), step):
        operands = (scores[..., start : start + step, :], u, v, core, top_m, preselect_m)
        found = _search_clear(*operands) if may_be_clear else None
        chosen.append(reference.search(*operands, quadrants, largest) if found is None else found)
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
