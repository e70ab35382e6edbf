"""Product-key retrieval with additive scores: PKM, Memory+ and PEER.

    q[head, side] = RMS(Wq[head, side] y)            a_i = <q[row], K[row, i]>,  b_j = <q[col], K[col, j]>
    keep the m largest a_i + b_j of a head           s = softmax over the kept m

Sources: PKM, arXiv 1907.05242, equations 3-5; Memory+, arXiv 2412.09764, section 2 (normalised keys, one pool of
values for all layers, SiLU gate); PEER, arXiv 2407.04153, section 2. Batch norm of queries is RMSNorm here, for all.
"""

import torch
from torch import Tensor, nn

from umscale.layers.memory import Memory
from umscale.layers.norm import RmsNorm
from umscale.layers.precision import full_precision
from umscale.spec import MemorySpec
from umscale_kernels import key_scores, select


class ProductKeyMemory(Memory):
    """PKM, Memory+ and PEER; see ``Memory``."""

    first: Tensor
    sum_core: Tensor

    def __init__(self, d_model: int, memory: MemorySpec, index: int, n_layers: int, seed: int) -> None:
        super().__init__(d_model, memory, index, n_layers, seed)
        self.query = nn.Linear(d_model, memory.query_width, bias=False)
        self.keys = nn.Parameter(torch.empty(memory.heads, 2, memory.keys_per_side, memory.d_key))
        self.query_norm = RmsNorm(memory.d_key)
        self.key_norm = RmsNorm(memory.d_key) if memory.kind == "memory_plus" else None
        # a_i + b_j is the rank-2 Tucker score of (a_i, 1) and (b_j, 1): one selection serves all architectures.
        heads = memory.heads
        self.register_buffer("first", torch.tensor([1.0, 0.0]).expand(heads, 2), persistent=False)
        swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        self.register_buffer("sum_core", swap.expand(heads, 1, 2, 2), persistent=False)

    def retrieve(self, y: Tensor) -> tuple[Tensor, Tensor]:
        memory, T = self.spec, y.shape[0]
        q = full_precision(self.query(y)).view(T, memory.heads, 2, memory.d_key)
        q = self.query_norm(q).permute(1, 2, 0, 3)  # [H, 2, T, k]
        keys = self.keys if self.key_norm is None else self.key_norm(self.keys)
        raw = key_scores(q, keys)  # [H, 2, T, n]
        pairs = torch.stack((raw, torch.ones_like(raw)), 2)  # [H, 2, 2, T, n]
        picked = select(
            pairs,
            self.first,
            self.first,
            self.sum_core,
            memory.top_m,
            memory.candidates,
            backend=self.backend,
        )
        address = self.shuffle(picked.row * memory.keys_per_side + picked.col)  # [H, T, m]
        rows = address.transpose(0, 1).reshape(T, -1)
        scores = picked.s.squeeze(-1).softmax(-1)  # [H, T, m]
        return rows, scores.transpose(0, 1).reshape(T, rows.shape[1], 1)

    @torch.no_grad()
    def calibrate(self, generator: torch.Generator, n_tokens: int = 512) -> float:
        """Return the energy of the softmax scores; normalised keys get gains that make raw scores unit-variance."""
        if self.key_norm is not None:
            self.query_norm.weight.fill_(self.spec.d_key ** (-1 / 4))
            self.key_norm.weight.fill_(self.spec.d_key ** (-1 / 4))
        y = torch.randn(n_tokens, self.query.in_features, generator=generator).to(self.query.weight)
        return float(self.retrieve(y)[1].square().sum(1).mean())
