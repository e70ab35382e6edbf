"""`select`: the m best (row, column) pairs of keys per token, exactly, with their separate per-core scores.

    a_i = sum_a u_a S[row, a]_i             b_j = sum_a v_a S[col, a]_j
    I = m1 largest of a,  J = m1 largest of b                                (equal scores: lower key first)
    s_q(i, j) = sum_ab S[row, a]_i C_q[a, b] S[col, b]_j                      for i in I, j in J
    keep the m pairs with the largest sum_q s_q(i, j)                        (equal totals: lower (i, j) first)

UltraMemV2 (arXiv 2508.18756), equations 7 and 11; several cores as in UltraMem. Selection is discrete: all backends
form a, b and the totals with the same roundings, so that on equal float32 scores they keep the same pairs.
"""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from umscale_kernels.backends import resolve, warn_slow
from umscale_kernels.select import aten, native, reference


class Selection(NamedTuple):
    """Kept pairs per token, in ascending (row, col)."""

    row: Tensor
    """[.., T, m] int64 row key."""
    col: Tensor
    """[.., T, m] int64 column key."""
    s: Tensor
    """[.., T, m, c] scores by core."""


def select(
    scores: Tensor,
    u: Tensor,
    v: Tensor,
    cores: Tensor,
    top_m: int,
    preselect_m: int | None = None,
    *,
    quadrants: int = 1,
    backend: str = "auto",
) -> Selection:
    """Exact top-m pairs of the m1 x m1 candidate grid.

    `scores` [.., 2, r, T, n] (row side, column side), `u` and `v` [.., r], `cores` [.., c, r, r]; any leading head
    axes. bfloat16 scores are widened to float32; float64 stays. m1 = `preselect_m`, by default min(top_m, n). The
    Triton backend takes at most 256 candidates and 2048 pairs, the native one 1024 candidates; "auto" runs others on
    `aten` with a `SlowPathWarning`.
    `quadrants` = 2 also searches I' x J' from the m1 largest of -a and of -b, where products of two negative scores
    are large: the best of both grids are kept, a pair in both counts once, and equal totals go to the lower
    (row, col). Only the backends `reference` and `aten` do so.
    Gradients reach `scores` and `cores` through the kept `s` only. Scores must be finite; others select arbitrary
    pairs. Raises ValueError on sizes that do not fit together.
    """
    n = scores.shape[-1]
    kept = min(top_m, n) if preselect_m is None else preselect_m
    if not 1 <= kept <= n:
        raise ValueError(f"preselect_m must lie in [1, n_keys = {n}], not {kept}")
    if not 1 <= top_m <= kept * kept:
        raise ValueError(f"top_m must lie in [1, preselect_m^2 = {kept * kept}], not {top_m}")
    if quadrants not in (1, 2):
        raise ValueError(f"quadrants must be 1 or 2, not {quadrants}")
    if quadrants == 2 and backend in ("native", "triton"):
        raise ValueError(f"backend {backend!r} of select searches one quadrant; take auto, aten or reference")
    rank, lead = scores.shape[-3], scores.shape[:-4]
    expected = {
        "u": (u, (*lead, rank)),
        "v": (v, (*lead, rank)),
        "cores": (cores, (*lead, cores.shape[-3], rank, rank)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must be {list(shape)} for scores {list(scores.shape)}, not {list(tensor.shape)}"
            )
    dtype = torch.promote_types(scores.dtype, torch.float32)
    operands = (u.detach().to(dtype), v.detach().to(dtype), cores.to(dtype), top_m, kept, quadrants)
    if backend == "reference":
        return Selection(*reference.select(scores.to(dtype), *operands))
    s, row, col = _select(scores, *operands, backend)
    return Selection(row, col, s)


@torch.library.custom_op("umscale::select", mutates_args=())
def _select(
    scores: Tensor,
    u: Tensor,
    v: Tensor,
    cores: Tensor,
    top_m: int,
    preselect_m: int,
    quadrants: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if quadrants == 2:
        if backend == "auto":
            warn_slow("select", "two quadrants")
        row, col, s = aten.select(scores.to(cores.dtype), u, v, cores, top_m, preselect_m, quadrants)
    else:
        module, scores = _module(backend, scores, cores.dtype, top_m, preselect_m)
        row, col, s = module.select(scores, u, v, cores, top_m, preselect_m)
    return s, row, col


@_select.register_fake
def _(
    scores: Tensor,
    u: Tensor,
    v: Tensor,
    cores: Tensor,
    top_m: int,
    preselect_m: int,
    quadrants: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*scores.shape[:-4], scores.shape[-2], top_m)
    row, col = (scores.new_empty(shape, dtype=torch.int64) for _ in range(2))
    return cores.new_empty((*shape, cores.shape[-3])), row, col


@torch.library.custom_op("umscale::select_backward", mutates_args=())
def _select_backward(
    ds: Tensor, scores: Tensor, cores: Tensor, row: Tensor, col: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    module, wide = _module(backend, scores, cores.dtype, row.shape[-1], 1)
    d_scores, d_cores = module.select_backward(ds, wide, cores, row, col)
    return d_scores.to(scores.dtype), d_cores


@_select_backward.register_fake
def _(
    ds: Tensor, scores: Tensor, cores: Tensor, row: Tensor, col: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores), torch.empty_like(cores)


def triton_supports(rank: int, n: int, preselect_m: int, top_m: int) -> bool:
    """One program holds a side of a token, a bit per cell of its grid and the kept pairs in registers."""
    return rank <= 4 and n <= 8192 and preselect_m <= 256 and top_m <= 2048


def _module(
    backend: str, scores: Tensor, dtype: torch.dtype, top_m: int, preselect_m: int
) -> tuple[ModuleType, Tensor]:
    """The implementation to run and the scores as it takes them: Triton widens bfloat16 on the chip."""
    rank, n = scores.shape[-3], scores.shape[-1]
    sizes = (rank, n, preselect_m, top_m)
    name = resolve(
        "select", backend, scores.device.type, dtype, native.supports(*sizes), triton_supports(*sizes)
    )
    module = importlib.import_module(f"umscale_kernels.select.{name}")  # triton only when it runs
    return module, scores if name == "triton" else scores.to(dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    scores, _, _, cores, _, _, _, backend = inputs
    _, row, col = output
    ctx.save_for_backward(scores, cores, row, col)
    ctx.backend = backend
    ctx.mark_non_differentiable(row, col)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, ds: Tensor | None, d_row: None, d_col: None) -> tuple[Tensor | None, ...]:
    if ds is None:
        return (None,) * 8
    d_scores, d_cores = _select_backward(ds, *ctx.saved_tensors, ctx.backend)
    return d_scores, None, None, d_cores, None, None, None, None


_select.register_autograd(_backward, setup_context=_setup)
