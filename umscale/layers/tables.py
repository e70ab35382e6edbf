"""Where the rows of memory layers live: one pool of tables, the window of it that a layer addresses, the shuffle."""

import math

import torch
from torch import Tensor, nn

from umscale.spec import MemorySpec

Tables = tuple[Tensor | None, Tensor]
"""Pre-values ``[N, Dp]`` (None without) and values ``[N, Dv]`` as one layer reads them."""


class ValueTables(nn.Module):
    """Pre-values and values of all memory layers, one pool: ``[n_tables n², Dp]`` and ``[n_tables n², Dv]``."""

    def __init__(self, memory: MemorySpec, n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.sharing = memory.sharing
        n_rows = memory.n_tables(n_layers) * memory.n_values
        self.pre_values = (
            nn.Parameter(torch.empty(n_rows, memory.d_pre_value)) if memory.d_pre_value else None
        )
        self.values = nn.Parameter(torch.empty(n_rows, memory.d_value))

    def per_layer(self, whole: bool = False) -> list[Tables]:
        """Return what each memory layer reads: its own table, or the pool where layers share or ``whole`` asks so.

        Own tables come from one unbind, so that backward writes every table's gradient once; slicing per layer
        would zero-fill and add the whole pool each time.
        """
        if whole or self.sharing != "none":
            return [(self.pre_values, self.values)] * self.n_layers
        values = self.values.unflatten(0, (self.n_layers, -1)).unbind(0)
        if self.pre_values is None:
            return [(None, v) for v in values]
        pre_values = self.pre_values.unflatten(0, (self.n_layers, -1)).unbind(0)
        return list(zip(pre_values, values, strict=True))


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
        return (address * self.a + self.b) % self.n_values
