"""Tucker-decomposed query-key retrieval: UltraMemV2 and UltraMem.

For a token y (the FFN's own normalised input), sides row/col, ranks a = 1..r and cores q = 1..c::

    q[side, a] = RMS(Wq[side, a] y)                 S[side, a]_i = <q[side, a], RMS(K[side, a, i])>
    I = top-m1 of sum_a u_a S[row, a]               J = top-m1 of sum_a v_a S[col, a]
    s_q(i, j) = sum_ab S[row, a]_i C_q[a, b] S[col, b]_j        keep the m largest of sum_q s_q over I x J

u, v are the leading singular vectors of sum_q C_q; core q weights the q-th slice of value channels. Source: arXiv
2508.18756 sections 3.1-3.4, with a query of its own for every rank (eq. 7; UltraMem, arXiv 2411.12364, shares one
between the ranks of a side) and multi-core scoring from UltraMem.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from umscale.layers.memory import Memory
from umscale.layers.norm import RmsNorm
from umscale.layers.precision import full_precision
from umscale.layers.split import whole
from umscale.spec import MemorySpec
from umscale_kernels import key_select, rank1_vectors, shared_scores

PENALTY_FLOOR = 0.15
"""Singular values below this are not penalised (tau of the released code)."""


class TuckerMemory(Memory):
    """UltraMemV2 and UltraMem; see ``Memory``."""

    u: Tensor
    v: Tensor

    def __init__(self, d_model: int, memory: MemorySpec, index: int, n_layers: int, seed: int) -> None:
        super().__init__(d_model, memory, index, n_layers, seed)
        r, k = memory.tucker_rank, memory.d_key
        self.query = nn.Linear(d_model, memory.query_width, bias=False)
        self.keys = nn.Parameter(torch.empty(memory.heads, 2 * r, memory.keys_per_side, k))
        self.query_norm = RmsNorm(k)
        self.key_norm = RmsNorm(k)
        self.cores = nn.Parameter(torch.empty(memory.heads, memory.n_cores, r, r))
        self.register_buffer("u", torch.zeros(memory.heads, r))
        self.register_buffer("v", torch.zeros(memory.heads, r))

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the rank-1 vectors from the cores, keeping their signs.

        Called after initialisation, after loading and after every optimiser step; a layer that skipped it
        would preselect arbitrary keys.
        """
        u, v = rank1_vectors(whole(self.cores), (self.u, self.v))
        self.u.copy_(u)
        self.v.copy_(v)

    def queries(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised queries ``[T, 2r, k]`` of ``y [T, h]`` and keys ``[H, 2r, n, k]``, fp32."""
        memory, T = self.spec, y.shape[0]
        q = self.query_norm(full_precision(self.query(y)).view(T, -1, memory.d_key))
        if q.shape[1] < 2 * memory.tucker_rank:  # ranks share a query
            q = q.repeat_interleave(memory.tucker_rank, 1)
        return q, self.key_norm(self.keys)

    def scores(self, y: Tensor) -> Tensor:
        """Query-key scores ``[H, 2, r, T, n]``, fp32, of ``y [T, h]``."""
        return shared_scores(*self.queries(y), self.spec.tucker_rank)

    def retrieve(self, y: Tensor) -> tuple[Tensor, Tensor]:
        memory, T = self.spec, y.shape[0]
        q, keys = self.queries(y)
        picked, raw = key_select(
            q,
            keys,
            self.u,
            self.v,
            self.cores,
            memory.top_m,
            memory.candidates,
            quadrants=memory.quadrants,
            backend=self.backend,
        )
        if self.training:
            if raw is None and memory.balance_loss:
                raw = shared_scores(q, keys, memory.tucker_rank)
            self.auxiliary = self._auxiliary(raw, picked.row, picked.col)
        address = self.shuffle(picked.row * memory.keys_per_side + picked.col)  # [H, T, m]
        rows = address.transpose(0, 1).reshape(T, -1)
        return rows, picked.s.transpose(0, 1).reshape(T, rows.shape[1], memory.n_cores)

    def _auxiliary(self, raw: Tensor | None, row: Tensor, col: Tensor) -> Tensor | None:
        losses = []
        if raw is not None and self.spec.balance_loss:
            sides = ((raw[:, 0], self.u, row), (raw[:, 1], self.v, col))
            losses += [self.spec.balance_loss * balance_loss(*side, self.replica_mean) for side in sides]
        if self.spec.tucker_penalty:
            losses.append(self.spec.tucker_penalty * tucker_penalty(self.cores))
        return torch.stack(losses).sum() if losses else None

    @torch.no_grad()
    def calibrate(self, generator: torch.Generator, n_tokens: int = 512) -> float:
        """Set the norm gains so that selected scores average 1 on unit-variance input; return their energy.

        Scores grow with the fourth power of a common gain, hence mean^(-1/4) (paper section 3.4). Assumes
        keys, queries and cores are initialised and the gains are 1.
        """
        y = torch.randn(n_tokens, self.query.in_features, generator=generator).to(self.query.weight)
        self.refresh()
        mean = self.retrieve(y)[1].mean()
        if mean > 0:
            self.query_norm.weight.fill_(mean ** (-1 / 4))
            self.key_norm.weight.fill_(mean ** (-1 / 4))
        return self.spec.heads * self.spec.top_m * (1 + float(self.retrieve(y)[1].var()))


def balance_loss(
    scores: Tensor,
    vector: Tensor,
    chosen: Tensor,
    replica_mean: Callable[[Tensor], Tensor] = lambda share: share,
) -> Tensor:
    """Load balance of one side's keys: ``n sum_i f_i p_i``, summed over heads (paper eq. 19, without beta).

    Args:
        scores: ``[H, r, T, n]`` query-key scores of the side; the gradient flows through them.
        vector: ``[H, r]`` rank-1 vector; p is the mean softmax of ``sum_a vector_a scores_a`` over tokens.
        chosen: ``[H, T, m]`` the side's key of every kept pair; f is its count divided by T.
        replica_mean: mean of f over processes that share a batch; the mean of their losses is then that of the batch.
    """
    heads, _, T, n = scores.shape
    p = torch.einsum("ha,hatn->htn", vector, scores).softmax(-1).mean(1)  # [H, n]
    picks = chosen.reshape(heads, -1)
    # Not bincount: it waits for the device, and a compiler cannot look past it. Whole numbers up to 2^24 are exact.
    f = p.new_zeros(heads, n).scatter_add_(1, picks, torch.ones_like(picks, dtype=p.dtype)) / T
    return n * (replica_mean(f) * p).sum()


def tucker_penalty(cores: Tensor) -> Tensor:
    """``1/(r-1) sum_{i>=2} max(0, l_i - tau)²`` of the singular values l of the summed cores, summed over heads."""
    values = torch.linalg.svdvals(full_precision(cores).sum(-3))[..., 1:]
    return (values - PENALTY_FLOOR).clamp(min=0).square().sum() / max(1, values.shape[-1])
