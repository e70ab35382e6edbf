"""Causal multi-head attention with rotary positions and query/key norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


def rotary_table(seq_len: int, d_head: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Return cosines and sines, fp32 ``[2, seq_len, d_head]`` (RoPE, arXiv 2104.09864; halves convention)."""
    frequency = theta ** (-torch.arange(0, d_head, 2, device=device, dtype=torch.float64) / d_head)
    angle = torch.arange(seq_len, device=device, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Apply rotary positions to ``x [..., S, d_head]``."""
    cos, sin = rotary[:, : x.shape[-2]].to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Self-attention ``[B, S, h] -> [B, S, h]``; bias-free, norms over the full width of queries and keys."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.q_norm = nn.RMSNorm(d_model, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(d_model, eps=NORM_EPS)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        B, S, h = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.view(B, S, self.n_heads, -1).transpose(1, 2) for t in (q, k, v))  # [B, heads, S, d]
        q, k = rotate(q, rotary), rotate(k, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(B, S, h))
