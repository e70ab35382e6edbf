"""Causal multi-head attention with rotary positions and query/key norms."""

import torch
from torch import Tensor, nn

from umscale.layers.norm import NORM_EPS, RmsNorm
from umscale_kernels import attention


def rotary_table(seq_len: int, d_head: int, theta: float) -> Tensor:
    """Return the rotations of each position and channel pair as cosine and sine, fp32 ``[S, d_head / 2, 2]``."""
    frequency = theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(seq_len, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


class Attention(nn.Module):
    """Self-attention ``[B, S, h] -> [B, S, h]``; bias-free, norms over the full width of queries and keys."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.backend = "auto"
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.q_norm = RmsNorm(d_model)
        self.k_norm = RmsNorm(d_model)

    def forward(self, x: Tensor, rotary: Tensor, start: Tensor | None = None) -> Tensor:
        gains = self.q_norm.weight, self.k_norm.weight
        return self.out(attention(self.qkv(x), *gains, rotary, start, eps=NORM_EPS, backend=self.backend))
