"""What all memory layers share: addresses, the value path, and how large its output starts.

    out = Wo (silu(Wg y) * sum_k s_k z_k V[R_k])          z_k = act(<p, P[R_k]>),  p = Wp y

``s`` and ``R`` come from a retrieval: ``umscale.layers.tucker`` (UltraMemV2, UltraMem) or
``umscale.layers.product_key`` (PKM, Memory+, PEER). Parts an architecture does not have are identities: the gate is
Memory+'s, pre-values are UltraMemV2's and PEER's, whose GELU is the only activation and which has no projections.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umscale.layers.precision import full_precision
from umscale.layers.tables import Chain, Shuffle, Tables, first_table
from umscale.rng import derive_seed
from umscale.spec import MemorySpec
from umscale_kernels import count_rows, lookup, lookup_linked
from umscale_kernels.lookup.parts import Part


class Memory(nn.Module, ABC):
    """One memory layer ``[B, S, h] -> [B, S, h]``; its rows live in the model's ``ValueTables``.

    ``index`` counts the model's memory layers. Attributes that callers may set: ``usage``, an int64 tensor
    ``[visible_values]`` that counts the rows read; ``backend``, which kernels run; ``row_gradients``, whether table
    gradients are row-sparse; ``atomic_gradients``, whether a GPU adds them up atomically; ``lookup``, another where
    tables are split over processes; ``replica_mean``, the mean of a statistic over processes that share a batch. After
    a forward pass in training ``auxiliary`` holds the layer's auxiliary loss, if it has one.
    """

    def __init__(self, d_model: int, memory: MemorySpec, index: int, n_layers: int, seed: int) -> None:
        super().__init__()
        expanded = memory.key_expansion**2 * memory.visible_values
        self.spec = memory
        self.index = index
        self.first_row = first_table(memory, index, n_layers) * memory.n_values
        self.shuffle: Shuffle | nn.Module = Shuffle(
            expanded, derive_seed(seed, f"shuffle/{index}"), memory.shuffle
        )
        bare = memory.kind == "peer"
        wide = memory.value_expansion * memory.d_value
        self.pre_value = (
            nn.Linear(d_model, memory.d_pre_value, bias=False) if memory.d_pre_value and not bare else None
        )
        self.gate = nn.Linear(d_model, memory.d_value, bias=False) if memory.kind == "memory_plus" else None
        self.out = None if bare else nn.Linear(wide, d_model, bias=False)
        self.backend = "auto"
        self.row_gradients = False
        self.atomic_gradients = False
        self.lookup: Callable[..., Tensor] = lookup
        self.replica_mean: Callable[[Tensor], Tensor] = lambda share: share
        self.usage: Tensor | None = None
        self.auxiliary: Tensor | None = None

    @abstractmethod
    def retrieve(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return virtual addresses, int64 ``[T, heads m]``, and scores, fp32 ``[T, heads m, c]``, of ``y [T, h]``."""

    @abstractmethod
    def calibrate(self, generator: torch.Generator, n_tokens: int = 512) -> float:
        """Prepare freshly initialised scores; return the mean of ``sum_k s_k²`` on unit-variance input."""

    def refresh(self) -> None:
        """Bring derived buffers up to date with the parameters."""

    def forward(
        self,
        y: Tensor,
        pre_values: Tensor | None,
        values: Tensor,
        read: tuple[Tensor | None, Tensor] | None = None,
        parts: tuple[Part | None, Part] | None = None,
        chain: Chain | None = None,
    ) -> Tensor:
        flat = y.reshape(-1, y.shape[-1])  # [T, h]
        address, scores = self.retrieve(flat)
        visible = self.spec.visible_values
        local = address % visible if self.spec.key_expansion > 1 else address
        if self.usage is not None:
            self.usage += count_rows(local, visible)
        rows = local if values.shape[0] == visible else (local + self.first_row) % values.shape[0]
        p = flat if self.pre_value is None else self.pre_value(flat)
        blocks = address // visible if self.spec.value_expansion > 1 else None
        pooled = self._pool(p, scores, rows, blocks, Tables(pre_values, values, read, parts, chain))
        if self.gate is not None:
            pooled = pooled * F.silu(self.gate(flat))
        return (pooled.to(y.dtype) if self.out is None else self.out(pooled)).view(y.shape)

    def _pool(
        self, p: Tensor, s: Tensor, rows: Tensor, blocks: Tensor | None, tables: Tables
    ) -> Tensor:  # [T, value_expansion Dv]
        inputs = (None if tables.pre_values is None else full_precision(p), s, rows)
        options: dict[str, Any] = {
            "blocks": blocks,
            "n_blocks": self.spec.value_expansion,
            "activation": "gelu" if self.spec.kind == "peer" else "none",
            "backward": "atomic" if self.atomic_gradients and s.device.type == "cuda" else "sorted",
            "backend": self.backend,
        }
        chain = tables.chain
        if chain is None or self.row_gradients or self.lookup is not lookup or self.backend == "reference":
            options |= {"sparse_grad": self.row_gradients, "read": tables.read}
            if tables.parts is not None and self.lookup is lookup:
                options["parts"] = tables.parts
            return self.lookup(*inputs, tables.pre_values, tables.values, **options)
        read = (tables.pre_values, tables.values) if tables.read is None else tables.read
        pooled, chain.links = lookup_linked(*inputs, *chain.links, read=read, **options)
        return pooled
