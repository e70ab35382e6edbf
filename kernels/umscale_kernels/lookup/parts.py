"""The gradient of a pool of tables, written where it belongs by the lookups that read its parts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Part = Callable[[], Tensor]
"""Where the gradient of one part goes; everything in it is to be overwritten."""


def table_parts(table: Tensor, n_parts: int) -> tuple[list[Tensor], list[Part]]:
    """Split `table` [n N, D] into parts [N, D], each with the place of its gradient in that of the pool.

    Stacking the parts' gradients, as autograd would, reads and writes the whole pool once more. A part that was not
    written in place is copied there, or zero when nothing read it.
    """
    gradient = _PoolGradient(table, n_parts)
    parts = _Split.apply(table, gradient)
    return list(parts), [lambda i=i: gradient.part(i) for i in range(n_parts)]


class _PoolGradient:
    def __init__(self, table: Tensor, n_parts: int) -> None:
        self.table, self.n_parts = table.detach(), n_parts
        self.whole: Tensor | None = None

    def part(self, index: int) -> Tensor:
        if self.whole is None:
            self.whole = torch.empty_like(self.table)
        return self._views(self.whole)[index]

    def _views(self, table: Tensor) -> tuple[Tensor, ...]:
        return table.unflatten(0, (self.n_parts, -1)).unbind(0)

    def collect(self, gradients: tuple[Tensor | None, ...]) -> Tensor:
        """The whole, which is the caller's from now on."""
        for i, gradient in enumerate(gradients):
            place = self.part(i)
            if gradient is None:
                place.zero_()
            elif gradient.data_ptr() != place.data_ptr():
                place.copy_(gradient)
        whole, self.whole = self.whole, None
        assert whole is not None
        return whole


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, gradient: _PoolGradient) -> tuple[Tensor, ...]:
        ctx.gradient = gradient
        ctx.set_materialize_grads(False)
        return gradient._views(table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        return ctx.gradient.collect(gradients), None
