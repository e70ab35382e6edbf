"""What the layer is measured beside: the same function with the same weights, as others write it in PyTorch.

All take ``(memory, y, pre_values, values)``, an UltraMemV2 layer with one head and a table of its own, ``y [T, h]``,
and return ``[T, h]``. ``T`` tokens, ``m`` kept values, ``m1`` candidates a side, ``r`` ranks, ``c`` cores.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw

from umscale.layers.norm import NORM_EPS
from umscale.layers.tucker import TuckerMemory
from umscale.spec import ModelSpec

OFFICIAL = "order of the released code"
GATHER = "plain PyTorch, gather + einsum"
BAG = "plain PyTorch, embedding_bag"

# ---------------------------------------------------------------------------------------------------------
# The order of the released code


def official_order(memory: TuckerMemory, y: Tensor, pre_values: Tensor, values: Tensor) -> Tensor:
    """The released UltraMemV2 code's order of computation, with a query for every rank and gathers for its kernels.

    Per rank a product into a zero-filled buffer, stacked; per core a grid ``[T, m1, m1]``, stacked and summed beside
    an int64 grid of addresses; then products of gathered rows ``[T, m, D]``.
    """
    spec, T = memory.spec, y.shape[0]
    q = F.linear(y, memory.query.weight).view(T, 2, spec.tucker_rank, spec.d_key)
    q = _rms(q, memory.query_norm.weight)
    keys = _rms(memory.keys[0], memory.key_norm.weight).unflatten(0, (2, spec.tucker_rank))  # [2, r, n, Dk]
    sides = [
        torch.stack(
            [_ScoresIntoZeros.apply(q[:, side, a], keys[side, a]) for a in range(spec.tucker_rank)], 1
        )
        for side in range(2)
    ]  # 2 x [T, r, n]
    kept = []
    for side, vector in zip(sides, (memory.u[0], memory.v[0]), strict=True):
        rank_1 = (side * vector[:, None]).sum(1)  # [T, n]
        index = rank_1.detach().topk(spec.candidates).indices  # [T, m1]
        kept.append((index, side.gather(-1, index.unsqueeze(1).expand(-1, spec.tucker_rank, -1))))
    (row, rows_A), (col, cols_B) = kept  # scores of the candidates [T, r, m1]
    grids = torch.stack([rows_A.transpose(1, 2) @ core @ cols_B for core in memory.cores[0]], 1).flatten(2)
    address = (row.unsqueeze(2) * spec.keys_per_side + col.unsqueeze(1)).flatten(1)  # [T, m1 m1]
    cell = grids.sum(1).detach().topk(spec.top_m).indices  # [T, m]
    s = grids.gather(-1, cell.unsqueeze(1).expand(-1, spec.n_cores, -1))  # [T, c, m]
    lookups = memory.shuffle(address.gather(-1, cell))

    p = _linear(memory.pre_value, y)
    z = (p.unsqueeze(1) * F.embedding(lookups, pre_values)).sum(-1)  # [T, m]
    weight = s * z.unsqueeze(1)
    read = F.embedding(lookups, values)  # [T, m, Dv]
    slices = read.chunk(spec.n_cores, -1)
    pooled = [(weight[:, i].unsqueeze(-1) * slices[i]).sum(1) for i in range(spec.n_cores)]
    return _linear(memory.out, torch.cat(pooled, -1))


def _rms(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * gain


class _ScoresIntoZeros(torch.autograd.Function):
    """``q [T, Dk] @ keys [n, Dk]^T`` with ``out=`` a zero-filled buffer."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(q, keys)
        return torch.matmul(q, keys.T, out=q.new_zeros(q.shape[0], keys.shape[0]))

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor, Tensor]:
        q, keys = ctx.saved_tensors
        return d_scores @ keys, d_scores.T @ q


# ---------------------------------------------------------------------------------------------------------
# Plain PyTorch, without needless copies


def readable(memory: TuckerMemory, y: Tensor, pre_values: Tensor, values: Tensor) -> Tensor:
    """Batched scores, one grid of the summed cores, gathered rows and einsum: how the equations read."""
    lookups, s = _retrieve(memory, y)
    return _linear(memory.out, gather_lookup(_linear(memory.pre_value, y), s, lookups, pre_values, values))


def with_embedding_bag(memory: TuckerMemory, y: Tensor, pre_values: Tensor, values: Tensor) -> Tensor:
    """As ``readable``, but values are pooled by one ``F.embedding_bag``, a bag per token and core."""
    lookups, s = _retrieve(memory, y)
    p = _linear(memory.pre_value, y)
    return _linear(memory.out, bag_lookup(p, s, lookups, pre_values, values))


def _retrieve(memory: TuckerMemory, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[T, m]`` and scores ``[T, m, c]``."""
    spec = memory.spec
    raw = memory.scores(y)[0]  # [2, r, T, n]
    address, s = plain_select(raw, memory.u[0], memory.v[0], memory.cores[0], spec.top_m, spec.candidates)
    return memory.shuffle(address), s


def plain_select(
    raw: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int
) -> tuple[Tensor, Tensor]:
    """Addresses ``row * n + col [T, m]`` and scores ``[T, m, c]`` from ``raw [2, r, T, n]``, by three ``topk``."""
    n = raw.shape[-1]
    with torch.no_grad():
        row, col = (
            torch.einsum("r,rtn->tn", vector, side).topk(preselect_m, sorted=False).indices
            for vector, side in zip((u, v), raw, strict=True)
        )
        rows_A, cols_B = (_at(side, index) for side, index in zip(raw, (row, col), strict=True))
        grid = torch.einsum("atm,ab,btk->tmk", rows_A, cores.sum(0), cols_B)  # [T, m1, m1]
        cell = grid.flatten(1).topk(top_m, sorted=False).indices
        row, col = row.gather(-1, cell // preselect_m), col.gather(-1, cell % preselect_m)
    A, B = _at(raw[0], row), _at(raw[1], col)  # [r, T, m]
    return row * n + col, torch.einsum("atm,qab,btm->tmq", A, cores, B)


def _at(side: Tensor, index: Tensor) -> Tensor:
    """``side [r, T, n]`` at ``index [T, m]`` -> ``[r, T, m]``."""
    return side.gather(-1, index.expand(side.shape[0], -1, -1))


def gather_lookup(p: Tensor, s: Tensor, lookups: Tensor, pre_values: Tensor, values: Tensor) -> Tensor:
    """``[T, Dv]`` from gathered rows ``[T, m, D]``."""
    weight = s.to(values.dtype) * _dots(p, lookups, pre_values).unsqueeze(-1)  # [T, m, c]
    read = F.embedding(lookups, values).unflatten(-1, (s.shape[-1], -1))  # [T, m, c, Dv / c]
    return torch.einsum("tmc,tmcd->tcd", weight, read).flatten(1)


def bag_lookup(p: Tensor, s: Tensor, lookups: Tensor, pre_values: Tensor, values: Tensor) -> Tensor:
    """``[T, Dv]``; the slice q of row R is row ``c R + q`` of the table seen as ``[c N, Dv / c]``."""
    T, _, c = s.shape
    weight = s.to(values.dtype) * _dots(p, lookups, pre_values).unsqueeze(-1)
    core = torch.arange(c, device=s.device).view(1, c, 1)
    bags = (lookups.unsqueeze(1) * c + core).flatten(0, 1)  # [T c, m]
    by_core = values.reshape(values.shape[0] * c, -1)
    weights = weight.transpose(1, 2).reshape(T * c, -1)
    return F.embedding_bag(bags, by_core, per_sample_weights=weights, mode="sum").view(T, -1)


def _dots(p: Tensor, lookups: Tensor, pre_values: Tensor) -> Tensor:
    return torch.einsum("td,tmd->tm", p.to(pre_values.dtype), F.embedding(lookups, pre_values))


def _linear(module: torch.nn.Module | None, x: Tensor) -> Tensor:
    if module is None:
        raise ValueError("the layer must have pre-values and an output projection")
    out: Tensor = module(x)
    return out


ADAMW: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
"""What every timed table update runs with."""


@torch.no_grad()
def fused_adamw(
    tables: list[Tensor],
    grads: Sequence[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    steps: list[Tensor],
) -> None:
    """``torch.optim.AdamW(fused=True)`` on tables and moments, in place."""
    adamw(tables, list(grads), first, second, [], steps, fused=True, amsgrad=False, maximize=False, **ADAMW)


# ---------------------------------------------------------------------------------------------------------
# Matrix products only


def products(memory: TuckerMemory, y: Tensor, pooled: Tensor) -> tuple[Tensor, ...]:
    """The layer's matrix products and nothing else; ``pooled [T, Dv]`` stands for what the lookup returns."""
    spec, T = memory.spec, y.shape[0]
    q = memory.query(y).view(T, 2 * spec.tucker_rank, spec.d_key).transpose(0, 1)
    scores = q @ memory.keys[0].transpose(-1, -2)  # [2r, T, n]
    return scores, _linear(memory.pre_value, y), _linear(memory.out, pooled)


def product_flops(memory: TuckerMemory, tokens: int) -> float:
    """FLOPs of ``products``, forward."""
    spec, h = memory.spec, memory.query.in_features
    macs = memory.query.out_features * (h + spec.keys_per_side) + h * (spec.d_pre_value + spec.d_value)
    return 2.0 * tokens * macs


# ---------------------------------------------------------------------------------------------------------
# A dense model in the order of nanoGPT


class PlainBlock(nn.Module):
    """Pre-norm attention and a GELU MLP of as many parameters as a SwiGLU of ``d_ffn``."""

    def __init__(self, d_model: int, n_heads: int, d_ffn: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.mlp_norm = nn.LayerNorm(d_model, bias=False)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.mixed = nn.Linear(d_model, d_model, bias=False)
        self.up = nn.Linear(d_model, 3 * d_ffn // 2, bias=False)
        self.down = nn.Linear(3 * d_ffn // 2, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, S, h = x.shape
        q, k, v = (
            t.view(B, S, self.n_heads, -1).transpose(1, 2)
            for t in self.qkv(self.attention_norm(x)).split(h, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mixed(mixed.transpose(1, 2).contiguous().view(B, S, h))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class PlainDecoder(nn.Module):
    """Learned positions, ``PlainBlock``s, and an embedding tied to the output: tokens and targets to the mean loss."""

    def __init__(self, spec: ModelSpec, seq_len: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.position = nn.Embedding(seq_len, spec.d_model)
        self.blocks = nn.ModuleList(
            PlainBlock(spec.d_model, spec.n_heads, spec.ffn.d_ffn) for _ in range(spec.n_layers)
        )
        self.norm = nn.LayerNorm(spec.d_model, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def plain_decoder_step(spec: ModelSpec, tokens: Tensor, precision: str) -> Callable[[], object]:
    """Return a training step of ``PlainDecoder`` under ``torch.compile`` on ``tokens [B, S + 1]``: AdamW, clipping."""
    model = PlainDecoder(spec, tokens.shape[1] - 1)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = compiled(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step
