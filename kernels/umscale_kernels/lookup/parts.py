"""The gradient of a pool of tables, made of the rows that were read in its parts."""

from typing import Any

import torch
from torch import Tensor

Part = list[tuple[Tensor, Tensor]]
"""Empty, until a backward pass puts there the distinct rows it read in one part, ascending [U], and their gradients
[U, D]."""


def table_parts(table: Tensor, n_parts: int) -> tuple[list[Tensor], list[Part]]:
    """Split `table` [n N, D] into parts [N, D], each with the place where its gradient is to be put.

    The pool's gradient is then row-sparse (coalesced, `torch.sparse_coo`) with the rows that were read: autograd would
    fill dense ones with zeros, stack them, and every pass over them would move zeros. A part whose gradient arrives as
    a dense tensor makes that of the pool dense.
    """
    places: list[Part] = [[] for _ in range(n_parts)]
    return list(_Split.apply(table, places)), places


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, places: list[Part]) -> tuple[Tensor, ...]:
        ctx.places, ctx.shape = places, table.shape
        ctx.set_materialize_grads(False)
        return table.unflatten(0, (len(places), -1)).unbind(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        found = [place.pop() if place else None for place in ctx.places]
        size = ctx.shape[0] // len(found)
        if all(gradient is None for gradient in gradients):
            kept = [(rows + i * size, x) for i, part in enumerate(found) if part for rows, x in (part,)]
            if not kept:
                return None, None
            rows, values = (torch.cat(parts) for parts in zip(*kept, strict=True))
            shape = tuple(ctx.shape)
            whole = torch.sparse_coo_tensor(
                rows.unsqueeze(0), values, shape, is_coalesced=True, check_invariants=False
            )
            return whole, None
        like = next(gradient for gradient in gradients if gradient is not None)
        parts = [torch.zeros_like(like) if gradient is None else gradient.clone() for gradient in gradients]
        for part, rows_of in zip(parts, found, strict=True):
            if rows_of is not None:
                part.index_add_(0, *rows_of)
        return torch.cat(parts), None
