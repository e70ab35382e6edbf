"""`attention` as its equations read: whole grids of scores, float32 or better."""

import torch
from torch import Tensor

from umscale_kernels.attention.aten import heads, placed


def attention(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, turns: Tensor, start: Tensor | None, eps: float
) -> Tensor:
    """See `umscale_kernels.attention`."""
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = (x.to(dtype) for x in placed(qkv, q_gain, k_gain, turns, eps))  # [B, H, S, d]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    hidden = ~visible(qkv.shape[1], start, qkv.device)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return heads(torch.einsum("bhij,bhjd->bhid", weights, v)).to(qkv.dtype)


def visible(n_positions: int, start: Tensor | None, device: torch.device) -> Tensor:
    """Whether query i may read key j: bool [1 or B, 1, S, S]."""
    position = torch.arange(n_positions, device=device)
    allowed = (position <= position.unsqueeze(1)).unsqueeze(0)  # [1, S, S]
    if start is not None:
        allowed = allowed & (position >= start.unsqueeze(-1))
    return allowed.unsqueeze(1)
