"""Causal multi-head attention with rotary positions and query/key norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umscale.layers.norm import RmsNorm
from umscale.layers.precision import full_precision


def rotary_table(seq_len: int, d_head: int, theta: float) -> Tensor:
    """Return the rotations of each position and channel pair as cosine and sine, fp32 ``[S, d_head / 2, 2]``."""
    frequency = theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(seq_len, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Apply rotary positions (RoPE, arXiv 2104.09864) to ``x [B, S, heads, d_head]``; fp32.

    Neighbouring channels form a pair, turned as one complex product: a single pass over memory.
    """
    pairs = torch.view_as_complex(full_precision(x).unflatten(-1, (-1, 2)))  # [B, S, heads, d_head / 2]
    turn = torch.view_as_complex(rotary[: x.shape[1]]).unsqueeze(1)  # [S, 1, d_head / 2]
    return torch.view_as_real(pairs * turn).flatten(-2)


class Attention(nn.Module):
    """Self-attention ``[B, S, h] -> [B, S, h]``; bias-free, norms over the full width of queries and keys."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.q_norm = RmsNorm(d_model)
        self.k_norm = RmsNorm(d_model)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        B, S, h = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = (norm(t).view(B, S, self.n_heads, -1) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
        q, k = rotate(q, rotary).to(v.dtype), rotate(k, rotary).to(v.dtype)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v.view(B, S, self.n_heads, -1)))  # [B, heads, S, d]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(B, S, h))
