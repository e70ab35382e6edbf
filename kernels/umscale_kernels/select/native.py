"""`select` in C++ (select.cpp) on CPU float32 tensors."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from umscale_kernels import native

MAX_RANK = 4
MAX_PRESELECT = 1024

_FORWARD = (*[c_void_p] * 4, c_int64, *[c_int] * 6, *[c_void_p] * 3)
_BACKWARD = (*[c_void_p] * 5, c_int64, *[c_int] * 5, *[c_void_p] * 2)


def supports(rank: int, n: int, preselect_m: int, top_m: int) -> bool:
    """Ranks are unrolled at compile time; the grid of one token must fit in cache. Any `n` and `top_m`."""
    return rank <= MAX_RANK and preselect_m <= MAX_PRESELECT


def select(
    scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `umscale_kernels.select.select`."""
    lead, (_, rank, tokens, n), n_cores = scores.shape[:-4], scores.shape[-4:], cores.shape[-3]
    scores, u, v, cores = (x.contiguous() for x in (scores, u, v, cores))
    row = scores.new_empty((*lead, tokens, top_m), dtype=torch.int64)
    col = torch.empty_like(row)
    s = scores.new_empty((*lead, tokens, top_m, n_cores))
    function = native.function("select", "umscale_select", *_FORWARD)
    tensors = (scores, u, v, cores, row, col, s)
    for head in range(lead.numel()):
        S, uh, vh, C, *out = (_pointer(x, head, len(lead)) for x in tensors)
        function(S, uh, vh, C, tokens, n, rank, n_cores, preselect_m, top_m, torch.get_num_threads(), *out)
    return row, col, s


def select_backward(
    ds: Tensor, scores: Tensor, cores: Tensor, row: Tensor, col: Tensor
) -> tuple[Tensor, Tensor]:
    """(dscores, dcores) of s = kept_scores(scores, cores, row, col); the same bits for any number of threads."""
    lead, (_, rank, tokens, n), n_cores = scores.shape[:-4], scores.shape[-4:], cores.shape[-3]
    ds, scores, cores, row, col = (x.contiguous() for x in (ds, scores, cores, row, col))
    d_scores, d_cores = torch.empty_like(scores), torch.empty_like(cores)
    function = native.function("select", "umscale_select_backward", *_BACKWARD)
    tensors = (scores, cores, row, col, ds, d_scores, d_cores)
    for head in range(lead.numel()):
        *inputs, d_S, d_C = (_pointer(x, head, len(lead)) for x in tensors)
        function(*inputs, tokens, n, rank, n_cores, row.shape[-1], torch.get_num_threads(), d_S, d_C)
    return d_scores, d_cores


def _pointer(x: Tensor, head: int, lead_dims: int) -> int:
    """Address of head `head` of a contiguous tensor with `lead_dims` leading head axes."""
    per_head = x.shape[lead_dims:].numel()
    return x.data_ptr() + head * per_head * x.element_size()
