"""`key_select`: the scores of queries against keys, and of them the kept pairs: `key_scores` and `select` in one.

    S[side, a]_i = <q[side, a], K[side, a, i]>        kept pairs and their scores: see `select`

On a CPU in float32 the gradient passes through the kept scores alone (key_select.cpp), so that no gradient of size
[T, n] is formed and no score but those is kept for it. Everywhere else it is the two operations.
"""

from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from umscale_kernels import native
from umscale_kernels.backends import resolve
from umscale_kernels.key_scores import key_scores
from umscale_kernels.operation import operation
from umscale_kernels.select import Selection, select
from umscale_kernels.select import native as native_select

_KEPT = (c_int64, *[c_int] * 3, *[c_void_p] * 3, c_int, c_void_p)
_BACKWARD = (c_int64, *[c_int] * 5, *[c_void_p] * 7, c_int, *[c_void_p] * 3)


def key_select(
    q: Tensor,
    keys: Tensor,
    u: Tensor,
    v: Tensor,
    cores: Tensor,
    top_m: int,
    preselect_m: int,
    *,
    quadrants: int = 1,
    backend: str = "auto",
) -> tuple[Selection, Tensor | None]:
    """Pairs kept by the scores of `q` [T, 2 r, k], which heads share, and `keys` [H, 2 r, n, k], rows before columns.

    Also the scores [H, 2, r, T, n] themselves, with their gradient, where they had to be formed for it; else None.
    The rest is as in `select`, with one leading axis of heads. Under `torch.autocast` to bfloat16, queries and keys
    are rounded to it.
    """
    rank, n = cores.shape[-1], keys.shape[2]
    floats = all(x.dtype == torch.float32 for x in (q, keys, cores)) and q.device.type == "cpu"
    fits = floats and quadrants == 1 and native_select.supports(rank, n, preselect_m, top_m) and q.numel() > 0
    ready = fits and backend in ("auto", "native") and native.available("key_select")
    if ready and resolve("select", backend, "cpu", q.dtype) == "native":
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            q, keys = _Rounded.apply(q), _Rounded.apply(keys)
        row, col, s = KeySelect.apply(q, keys, u.detach(), v.detach(), cores, top_m, preselect_m)
        return Selection(row, col, s), None
    scores = shared_scores(q, keys, rank)
    picked = select(scores, u, v, cores, top_m, preselect_m, quadrants=quadrants, backend=backend)
    return picked, scores


def shared_scores(q: Tensor, keys: Tensor, rank: int) -> Tensor:
    """All scores [H, 2, r, T, n] of queries [T, 2 r, k] that heads share and keys [H, 2 r, n, k]; see `key_scores`."""
    heads, _, n, _ = keys.shape
    q = q.transpose(0, 1)
    scores = key_scores(q.unsqueeze(0) if heads == 1 else q.expand(heads, -1, -1, -1), keys)
    return scores.view(heads, 2, rank, q.shape[1], n)


class _Rounded(torch.autograd.Function):
    """Rounds to bfloat16, in float32; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        return d


class KeySelect(torch.autograd.Function):
    """The native path."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, keys: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            row, col, s, kept = _key_select(q, keys, u, v, cores, top_m, preselect_m)
        ctx.save_for_backward(q, keys, cores, row, col, kept)
        ctx.mark_non_differentiable(row, col)
        return row, col, s

    @staticmethod
    def backward(ctx: Any, d_row: None, d_col: None, ds: Tensor) -> tuple[Tensor | None, ...]:
        d_q, d_keys, d_cores = _key_select_backward(ds, *ctx.saved_tensors)
        return d_q, d_keys, None, None, d_cores, None, None


def _fake(
    q: Tensor, keys: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (keys.shape[0], q.shape[0], top_m)
    row, col = (q.new_empty(shape, dtype=torch.int64) for _ in range(2))
    return row, col, q.new_empty(*shape, cores.shape[1]), q.new_empty(*shape, 2, cores.shape[2])


@operation("key_select", _fake)
def _key_select(
    q: Tensor, keys: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (T, _, _), (heads, _, n, _), rank = q.shape, keys.shape, cores.shape[2]
    scores = torch.matmul(q.transpose(0, 1), keys.transpose(-1, -2)).view(heads, 2, rank, T, n)
    row, col, s = native_select.select(scores, u, v, cores, top_m, preselect_m)
    kept = q.new_empty(heads, T, top_m, 2, rank)
    function = native.function("key_select", "umscale_kept_scores", *_KEPT)
    for head in range(heads):
        inputs = (x[head].data_ptr() for x in (scores, row, col))
        function(T, n, rank, top_m, *inputs, torch.get_num_threads(), kept[head].data_ptr())
    return row, col, s, kept


def _fake_backward(
    ds: Tensor, q: Tensor, keys: Tensor, cores: Tensor, row: Tensor, col: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), keys.new_empty(keys.shape), cores.new_empty(cores.shape)


@operation("key_select_backward", _fake_backward)
def _key_select_backward(
    ds: Tensor, q: Tensor, keys: Tensor, cores: Tensor, row: Tensor, col: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    ds, q, keys, cores = (x.contiguous() for x in (ds, q, keys, cores))
    (heads, n_cores, rank, _), m = cores.shape, row.shape[-1]
    d_q, d_keys, d_cores = q.new_zeros(q.shape), keys.new_empty(keys.shape), cores.new_empty(cores.shape)
    function = native.function("key_select", "umscale_key_select_backward", *_BACKWARD)
    sizes = (q.shape[0], keys.shape[2], rank, n_cores, m, q.shape[2])
    for head in range(heads):
        inputs = (x[head].data_ptr() for x in (keys, cores, row, col, kept, ds))
        outputs = (x.data_ptr() for x in (d_q, d_keys[head], d_cores[head]))
        function(*sizes, q.data_ptr(), *inputs, torch.get_num_threads(), *outputs)
    return d_q, d_keys, d_cores
