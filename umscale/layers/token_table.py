"""Tables whose rows are addressed by tokens: gathered by the shared lookup, a bag of one row a head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umscale_kernels import count_rows, lookup


class Fetched(NamedTuple):
    """Rows of a table in host memory, where the model computes."""

    on_host: Tensor
    """Which, ascending, int64 ``[U]``."""
    rows: Tensor
    """The same on the device."""
    values: Tensor
    """``[U, w]``."""


class TokenTable(nn.Module):
    """The tables of one module, one after another: ``rows [N, w]``, read at ``[B, S, A]`` as ``[B, S, A w]``, fp32.

    Attributes that callers may set: ``usage``, an int64 tensor ``[N]`` that counts the rows read; ``backend``;
    ``row_gradients``, whether gradients are row-sparse; ``on_host``, whether ``rows`` stay in host memory wherever the
    module goes, and ``fetched``, those of them that a training step reads.
    """

    offsets: Tensor

    def __init__(self, sizes: list[list[int]], width: int) -> None:
        super().__init__()
        flat = [size for heads in sizes for size in heads]
        self.rows = nn.Parameter(torch.empty(sum(flat), width))
        self.starts = torch.tensor([0, *flat[:-1]], dtype=torch.int64).cumsum(0)
        """First row of each table, int64 ``[A]``, on the host; ``offsets`` are the same where the module is."""
        self.register_buffer("offsets", self.starts, persistent=False)
        self.usage: Tensor | None = None
        self.backend = "auto"
        self.row_gradients = False
        self.on_host = False
        self.fetched: Fetched | None = None

    def forward(self, addresses: Tensor) -> Tensor:
        bags = (addresses + self.offsets).reshape(-1, 1)  # [T A, 1]
        if self.usage is not None:
            self.usage += count_rows(bags, self.usage.numel())
        rows: Tensor = self.rows
        if self.on_host:
            there = self.fetched if torch.is_grad_enabled() else None  # evaluation reads other tokens
            there = there or self.fetch(bags.unique().cpu(), bags.device)
            bags, rows = torch.searchsorted(there.rows, bags), there.values
        ones = rows.new_ones(bags.shape[0], 1, 1)
        sparse = self.row_gradients and not self.on_host
        read = lookup(None, ones, bags, None, rows, sparse_grad=sparse, backend=self.backend)
        return read.view(*addresses.shape[:-1], -1)

    def fetch(self, rows: Tensor, device: torch.device, *, trained: bool = False) -> Fetched:
        """Return the rows of those numbers (int64 ``[U]``, ascending, on the host) on ``device``.

        With ``trained`` their values are a leaf that keeps its gradient there; else it reaches the table on its own.
        """
        if not trained:
            return Fetched(rows, rows.to(device), F.embedding(rows, self.rows, sparse=True).to(device))
        pin = device.type == "cuda"
        kept = torch.empty(rows.numel(), self.rows.shape[1], dtype=self.rows.dtype, pin_memory=pin)
        torch.index_select(self.rows.detach(), 0, rows, out=kept)
        numbers = rows.pin_memory() if pin else rows
        values = kept.to(device, non_blocking=True).requires_grad_()
        return Fetched(rows, numbers.to(device, non_blocking=True), values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if not self.on_host:
            return super()._apply(fn, recurse)
        rows = self._parameters.pop("rows")
        super()._apply(fn, recurse)
        assert rows is not None
        rows.data = rows.data.to(
            fn(rows.data[:0]).dtype
        )  # what changes the type reaches them, what moves does not
        self._parameters["rows"] = rows
        return self
