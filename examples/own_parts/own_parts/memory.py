"""Flat keys: every value has a key of its own, and a query is compared with all of them.

    q = RMS(Wq y)        scores = <q, K> / temperature        keep the top_m largest, softmax over them

Product keys avoid this search, whose cost grows with the number of values; beside them it shows what they give up.
"""

import torch
from torch import Tensor, nn

from umscale.layers.memory import Memory
from umscale.layers.norm import RmsNorm
from umscale.layers.precision import full_precision
from umscale.parts import MemoryPart
from umscale.spec import MemorySpec


class FlatKeys(Memory):
    """Retrieval by exhaustive search; value path and rows are those of every memory."""

    def __init__(self, d_model: int, memory: MemorySpec, index: int, n_layers: int, seed: int) -> None:
        super().__init__(d_model, memory, index, n_layers, seed)
        self.temperature = FLAT_KEYS.options_of(memory)["temperature"]
        self.query = nn.Linear(d_model, memory.heads * memory.d_key, bias=False)
        self.query_norm = RmsNorm(memory.d_key)
        self.keys = nn.Parameter(torch.empty(memory.heads, memory.visible_values, memory.d_key))

    def retrieve(self, y: Tensor) -> tuple[Tensor, Tensor]:
        memory, n_tokens = self.spec, y.shape[0]
        q = full_precision(self.query(y)).view(n_tokens, memory.heads, memory.d_key)
        q = self.query_norm(q)
        with torch.autocast(y.device.type, enabled=False):
            raw = torch.einsum("thk,hnk->thn", q, self.keys) / (self.temperature * memory.d_key**0.5)
        best, rows = raw.topk(memory.top_m, dim=-1)  # [T, H, m]
        scores = best.softmax(-1)
        return rows.reshape(n_tokens, -1), scores.reshape(n_tokens, -1, 1)

    @torch.no_grad()
    def calibrate(self, generator: torch.Generator, n_tokens: int = 512) -> float:
        y = torch.randn(n_tokens, self.query.in_features, generator=generator).to(self.query.weight)
        return float(self.retrieve(y)[1].square().sum(1).mean())


def params(d_model: int, memory: MemorySpec) -> int:
    """Of one layer: queries, keys, the gain of the norm."""
    return memory.heads * memory.d_key * (d_model + memory.visible_values) + memory.d_key


def macs(d_model: int, memory: MemorySpec) -> tuple[float, float]:
    """Per token: the query projection; the products of a query with all keys."""
    per_head = memory.heads * memory.d_key
    return float(per_head * d_model), float(per_head * memory.visible_values)


def check(d_model: int, memory: MemorySpec) -> None:
    """A temperature of zero or less has no softmax."""
    if not FLAT_KEYS.options_of(memory)["temperature"] > 0:
        raise ValueError("temperature must be positive")


FLAT_KEYS = MemoryPart(layer=FlatKeys, options={"temperature": 1.0}, params=params, macs=macs, check=check)
