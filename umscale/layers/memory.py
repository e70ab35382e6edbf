"""The UltraMemV2 memory layer: Tucker product-key retrieval and one linear value path.

For a token y (the FFN's own normalised input), sides row/col, ranks a = 1..r and cores q = 1..c::

    q[side, a] = RMS(Wq[side, a] y)                 S[side, a]_i = <q[side, a], RMS(K[side, a, i])>
    I = top-m1 of sum_a u_a S[row, a]               J = top-m1 of sum_a v_a S[col, a]
    s_q(i, j) = sum_ab S[row, a]_i C_q[a, b] S[col, b]_j        keep the m largest of sum_q s_q over I x J
    z_k = <Wp y, P[R_k]>                            out = Wo sum_k s_k z_k V[R_k]    (core q: q-th slice)

u, v are the leading singular vectors of sum_q C_q. Source: arXiv 2508.18756 sections 3.1-3.4, with a query of
its own for every rank (eq. 7) and multi-core scoring from UltraMem (arXiv 2411.12364).
"""

import math

import torch
from torch import Tensor, nn

from umscale.layers.norm import RmsNorm
from umscale.rng import derive_seed
from umscale.spec import MemorySpec
from umscale_kernels import count_rows, lookup, rank1_vectors, select


class ValueTables(nn.Module):
    """Pre-values and values of all memory layers, one pool: ``[n_layers n², Dp]`` and ``[n_layers n², Dv]``."""

    def __init__(self, memory: MemorySpec, n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        n_rows = n_layers * memory.n_values
        self.pre_values = (
            nn.Parameter(torch.empty(n_rows, memory.d_pre_value)) if memory.d_pre_value else None
        )
        self.values = nn.Parameter(torch.empty(n_rows, memory.d_value))

    def per_layer(self) -> list[tuple[Tensor | None, Tensor]]:
        """Return each layer's own (pre-values ``[n², Dp]``, values ``[n², Dv]``).

        One unbind for all layers, so that backward writes every table's gradient once; slicing per layer would
        zero-fill and add the whole pool each time.
        """
        values = self.values.unflatten(0, (self.n_layers, -1)).unbind(0)
        if self.pre_values is None:
            return [(None, v) for v in values]
        pre_values = self.pre_values.unflatten(0, (self.n_layers, -1)).unbind(0)
        return list(zip(pre_values, values, strict=True))


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


class Memory(nn.Module):
    """One memory layer ``[B, S, h] -> [B, S, h]``; its rows live in the model's ``ValueTables``.

    ``table`` is the index of the layer's table in the pool. ``usage``, when set to an int64 tensor
    ``[n_values]``, counts the rows that forward passes read. ``backend`` chooses the kernels.
    """

    u: Tensor
    v: Tensor

    def __init__(self, d_model: int, memory: MemorySpec, table: int, seed: int) -> None:
        super().__init__()
        r, k, n = memory.tucker_rank, memory.d_key, memory.n_keys
        self.spec = memory
        self.table = table
        self.shuffle = Shuffle(memory.n_values, derive_seed(seed, f"shuffle/{table}"), memory.shuffle)
        self.query = nn.Linear(d_model, 2 * r * k, bias=False)
        self.keys = nn.Parameter(torch.empty(memory.heads, 2 * r, n, k))
        self.query_norm = RmsNorm(k)
        self.key_norm = RmsNorm(k)
        self.cores = nn.Parameter(torch.empty(memory.heads, memory.n_cores, r, r))
        self.pre_value = nn.Linear(d_model, memory.d_pre_value, bias=False) if memory.d_pre_value else None
        self.out = nn.Linear(memory.d_value, d_model, bias=False)
        self.register_buffer("u", torch.zeros(memory.heads, r))
        self.register_buffer("v", torch.zeros(memory.heads, r))
        self.backend = "auto"
        self.usage: Tensor | None = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the rank-1 vectors from the cores, keeping their signs.

        Called after initialisation, after loading and after every optimiser step; a layer that skipped it
        would preselect arbitrary keys.
        """
        u, v = rank1_vectors(self.cores, (self.u, self.v))
        self.u.copy_(u)
        self.v.copy_(v)

    def retrieve(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows of the layer's table, int64 ``[T, heads m]``, and per-core scores, fp32 ``[T, heads m, c]``."""
        memory, T = self.spec, y.shape[0]
        q = self.query(y).float().view(T, -1, memory.d_key)  # [T, 2r, k]
        q = self.query_norm(q).transpose(0, 1)  # [2r, T, k]
        keys = self.key_norm(self.keys)  # [H, 2r, n, k]
        raw = torch.matmul(q, keys.transpose(-1, -2)).float()  # [H, 2r, T, n]
        picked = select(
            raw.view(memory.heads, 2, memory.tucker_rank, T, memory.n_keys),
            self.u,
            self.v,
            self.cores,
            memory.top_m,
            memory.preselect_m,
            backend=self.backend,
        )
        address = self.shuffle(picked.row * memory.n_keys + picked.col)  # [H, T, m]
        rows = address.transpose(0, 1).reshape(T, -1)
        scores = picked.s.transpose(0, 1).reshape(T, rows.shape[1], memory.n_cores)
        if self.usage is not None:
            self.usage += count_rows(rows, memory.n_values)
        return rows, scores

    def forward(self, y: Tensor, pre_values: Tensor | None, values: Tensor) -> Tensor:
        flat = y.reshape(-1, y.shape[-1])  # [T, h]
        rows, scores = self.retrieve(flat)
        p = None if self.pre_value is None else self.pre_value(flat).float()  # [T, Dp]
        pooled = lookup(p, scores, rows, pre_values, values, backend=self.backend)  # [T, Dv]
        return self.out(pooled).view(y.shape)

    @torch.no_grad()
    def calibrate(self, generator: torch.Generator, n_tokens: int = 512) -> float:
        """Set the norm gains so that selected scores average 1 on unit-variance input; return their variance.

        Scores grow with the fourth power of a common gain, hence mean^(-1/4) (paper section 3.4). Assumes
        keys, queries and cores are initialised and the gains are 1.
        """
        h = self.query.in_features
        y = torch.randn(n_tokens, h, generator=generator).to(self.query.weight)
        self.refresh()
        mean = self.retrieve(y)[1].mean()
        if mean > 0:
            self.query_norm.weight.fill_(mean ** (-1 / 4))
            self.key_norm.weight.fill_(mean ** (-1 / 4))
        return float(self.retrieve(y)[1].var())


def value_std(d_model: int, n_layers: int, d_ffn: int, memory: MemorySpec, score_variance: float) -> float:
    """Initial standard deviation of value and pre-value rows (paper eq. 26).

    It makes the memory's output as large as the FFN's. The equation prints sigma² on the left, but its
    derivation (eq. 22) has sigma⁴: pre-values and values each contribute sigma². Without pre-values the same
    derivation leaves one factor.
    """
    lookups = memory.top_m * memory.heads * (1 + score_variance)
    ratio = d_ffn / d_model
    if memory.d_pre_value:
        fourth = 0.2 * ratio * d_model / (lookups * memory.d_pre_value * memory.d_value * n_layers)
        return fourth**0.25
    return (0.08 * ratio * d_model / (lookups * memory.d_value * n_layers)) ** 0.5
