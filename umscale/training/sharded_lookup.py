"""Lookup in tables split by channel: tokens' inputs go to all processes, what they read comes back.

Of T tokens a process, W processes, and columns c(r) of pre-values P and values V on process r::

    R, p[:, c(r)]                 of all W T tokens to every r          all-gather, all-to-all
    z_r = <p[:, c(r)], P_r[R]>    partial, of all tokens
    z = sum_r z_r                 of a process's own tokens             reduce-scatter
    w = s act(z)                  of all tokens to every r              all-gather
    o_r = sum_k w_k V_r[R_k]      of all tokens, columns c(r)
    o = [o_1 ... o_W]             of a process's own tokens             all-to-all

The released code all-reduces z where this scatters the sum and gathers w, which it would gather anyway as s: half the
volume, and the activation is computed once a token. Every step's gradient is the step turned around.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale.training.process_group import World
from umscale_kernels import lookup, row_dots
from umscale_kernels.lookup import Activation, Backward


def sharded_lookup(
    world: World,
    p: Tensor | None,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    *,
    blocks: Tensor | None = None,
    n_blocks: int = 1,
    activation: Activation = "none",
    sparse_grad: bool = False,
    read: tuple[Tensor | None, Tensor] | None = None,
    backward: Backward = "sorted",
    backend: str = "auto",
) -> Tensor:
    """``umscale_kernels.lookup`` on this process's columns ``[N, D / W]`` of the tables; all else is of whole width.

    Table gradients are those of the sum of all processes' losses. All call it in one order, with equally many tokens.
    """
    read_pre_values, read_values = (None, None) if read is None else read
    index = rows.int() if values.shape[0] < 2**31 else rows
    everyones_rows = world.gather(index).flatten(0, 1)  # [W T, m]
    weights = s
    if pre_values is not None and p is not None:
        columns = _Exchange.apply(world, p.unflatten(1, (world.size, -1)).transpose(0, 1))  # [W, T, Dp / W]
        z = row_dots(
            columns.flatten(0, 1),
            everyones_rows,
            pre_values,
            sparse_grad=sparse_grad,
            read=read_pre_values,
            backend=backend,
        )
        z = _ReduceScatter.apply(world, z)  # [T, m]
        weights = s * (F.gelu(z) if activation == "gelu" else z).unsqueeze(-1)
    pooled = lookup(
        None,
        _AllGather.apply(world, weights),  # [W T, m, c]
        everyones_rows,
        None,
        values,
        blocks=None if blocks is None else world.gather(blocks).flatten(0, 1),
        n_blocks=n_blocks,
        sparse_grad=sparse_grad,
        read=None if read_values is None else (None, read_values),
        backward=backward,
        backend=backend,
    )  # [W T, E Dv / W], E = n_blocks
    parts = _Exchange.apply(world, pooled.unflatten(0, (world.size, -1)))  # [W, T, E Dv / W], by columns
    by_core = parts.unflatten(2, (n_blocks, s.shape[2], -1))  # [W, T, E, c, Dv / (c W)]
    return by_core.permute(1, 2, 3, 0, 4).flatten(1)


class _AllGather(torch.autograd.Function):
    """``[T, ...]`` to ``[W T, ...]``, everyone's in order of rank."""

    @staticmethod
    def forward(ctx: Any, world: World, x: Tensor) -> Tensor:
        ctx.world = world
        return world.gather(x).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _reduce_scatter(ctx.world, gradient)


class _ReduceScatter(torch.autograd.Function):
    """``[W T, ...]`` to ``[T, ...]``: the sum over processes, each keeping its own tokens."""

    @staticmethod
    def forward(ctx: Any, world: World, x: Tensor) -> Tensor:
        ctx.world = world
        return _reduce_scatter(world, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.world.gather(gradient).flatten(0, 1)


class _Exchange(torch.autograd.Function):
    """``[W, ...]`` to ``[W, ...]``: an all-to-all, which is its own transpose."""

    @staticmethod
    def forward(ctx: Any, world: World, x: Tensor) -> Tensor:
        ctx.world = world
        return world.exchange(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.world.exchange(gradient)


def _reduce_scatter(world: World, x: Tensor) -> Tensor:
    """Exchange and add: the same volume, and a sum in order of rank on every backend."""
    return world.exchange(x.unflatten(0, (world.size, -1))).sum(0)
