"""Where the rows of memory layers live: one pool of tables, the window of it that a layer addresses, the shuffle."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from umscale.spec import MemorySpec
from umscale_kernels.lookup.parts import Part, table_parts


class Chain:
    """The tables that several layers read, as the next of them takes them.

    The first takes the tables, each later one the stand-ins of the layer before, so that one gradient passes from
    layer to layer in place of one of all tables from each; see ``umscale_kernels.lookup_linked``.
    """

    def __init__(self, pre_values: Tensor | None, values: Tensor) -> None:
        self.links = pre_values, values


class Tables(NamedTuple):
    """What one memory layer reads."""

    pre_values: Tensor | None
    """``[N, Dp]``, None without pre-values."""
    values: Tensor
    """``[N, Dv]``."""
    read: tuple[Tensor | None, Tensor] | None
    """Copies of both in another precision that are read in their place."""
    parts: tuple[Part | None, Part] | None = None
    """Where the rows this layer reads and their gradients go, when the pool's gradients are made of rows."""
    chain: Chain | None = None
    """Of layers that share tables, one object for all of them."""


class ValueTables(nn.Module):
    """Pre-values and values of all memory layers, one pool: ``[n_tables n², Dp]`` and ``[n_tables n², Dv]``.

    With ``part = (r, W)`` the r-th 1/W of the columns of both, see ``columns``; nothing of their whole size is made.
    """

    pre_values_copy: Tensor | None
    compact_gradients: bool
    values_copy: Tensor | None

    def __init__(self, memory: MemorySpec, n_layers: int, part: tuple[int, int] = (0, 1)) -> None:
        super().__init__()
        self.n_layers, self.part = n_layers, part
        self.sharing = memory.sharing
        n_rows = memory.n_tables(n_layers) * memory.n_values
        self.pre_values = (
            nn.Parameter(torch.empty(n_rows, memory.d_pre_value // part[1])) if memory.d_pre_value else None
        )
        self.values = nn.Parameter(torch.empty(n_rows, memory.d_value // part[1]))
        self.compact_gradients = False
        """Whether gradients may be row-sparse where they would be dense; the optimiser takes one for the other."""
        self.keep_copies(False)

    def keep_copies(self, enabled: bool) -> None:
        """Read bfloat16 copies, which the optimiser keeps up to date, instead of the tables themselves."""
        for name, table in (("pre_values_copy", self.pre_values), ("values_copy", self.values)):
            copy = table.detach().bfloat16() if enabled and table is not None else None
            self.register_buffer(name, copy, persistent=False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies up to date with the tables."""
        for parameter, copy in self.copies().items():
            copy.copy_(parameter)

    def copies(self) -> dict[nn.Parameter, Tensor]:
        """Return the copy of each table that has one."""
        pairs = ((self.pre_values, self.pre_values_copy), (self.values, self.values_copy))
        return {table: copy for table, copy in pairs if table is not None and copy is not None}

    def per_layer(self, whole: bool = False) -> list[Tables]:
        """Return what each memory layer reads: its own table, or the pool where layers share or ``whole`` asks so.

        Own tables come from one unbind, so that backward writes every table's gradient once; slicing per layer
        would zero-fill and add the whole pool each time.
        """
        copies = None if self.values_copy is None else (self.pre_values_copy, self.values_copy)
        if whole or self.sharing != "none":
            windows = self.sharing in ("ring", "no_ring", "block")
            chain = Chain(self.pre_values, self.values) if windows and not whole else None
            return [Tables(self.pre_values, self.values, copies, chain=chain)] * self.n_layers
        n = self.n_layers
        reads: list[tuple[Tensor | None, Tensor] | None] = [None] * n
        if copies is not None:
            reads = list(zip(self._unbind(copies[0]), self._unbind(copies[1]), strict=True))
        if not self.compact_gradients:
            pairs = zip(self._unbind(self.pre_values), self._unbind(self.values), strict=True)
            return [Tables(*pair, read) for pair, read in zip(pairs, reads, strict=True)]
        values, value_parts = table_parts(self.values, n)
        pre_values, pre_value_parts = (
            ([None] * n, [None] * n) if self.pre_values is None else table_parts(self.pre_values, n)
        )
        parts = zip(pre_value_parts, value_parts, strict=True)
        return [Tables(*tables) for tables in zip(pre_values, values, reads, parts, strict=True)]

    def _unbind(self, table: Tensor | None) -> Any:
        return [None] * self.n_layers if table is None else table.unflatten(0, (self.n_layers, -1)).unbind(0)


def column_groups(memory: MemorySpec) -> dict[str, int]:
    """Return into how many equal groups of columns each table falls; a part of a table has a part of every group."""
    return {"pre_values": 1, "values": memory.n_cores}


def columns(table: Tensor, groups: int, part: tuple[int, int]) -> Tensor:
    """Return columns ``[N, D / W]`` of ``table [N, D]``, a view or a copy: of each group those of ``part = (r, W)``."""
    rank, size = part
    return table.unflatten(1, (groups, size, -1))[:, :, rank].flatten(1)


def first_table(memory: MemorySpec, layer: int, n_layers: int) -> int:
    """First of the ``share_layers`` consecutive tables (modulo ``n_layers``) that a memory layer addresses.

    Paper Table 7: a ring is centred on the layer (g = 4: l-1, l, l+1, l+2) and wraps around; ``no_ring`` is the same
    window moved inside the pool; a block of layers addresses the block's tables.
    """
    g = memory.share_layers
    if memory.sharing == "all":
        return 0
    if memory.sharing == "block":
        return layer // g * g
    start = layer - (g - 1) // 2
    return start % n_layers if memory.sharing == "ring" else min(max(start, 0), n_layers - g)


class Shuffle:
    """The stateless bijection f -> (a f + b) mod N that scatters neighbouring addresses over a table.

    ``a`` is coprime to N and near N / golden ratio, which spreads a row's addresses evenly.
    """

    def __init__(self, n_values: int, seed: int, enabled: bool) -> None:
        self.n_values, self.a, self.b = n_values, 1, 0
        if enabled and n_values > 2:
            golden = n_values * 0.6180339887498949
            self.a = int(golden * (0.9 + 0.2 * (seed % 997) / 997)) or 1
            while math.gcd(self.a, n_values) != 1:
                self.a += 1
            self.b = seed % n_values

    def __call__(self, address: Tensor) -> Tensor:
        mixed = address * self.a + self.b
        if self.n_values & (self.n_values - 1):
            return mixed % self.n_values
        return mixed & (self.n_values - 1)  # a power of two: ten times as fast
