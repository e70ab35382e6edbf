"""`attention` in stock PyTorch operations, any device and dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale_kernels.rms_norm import rms_norm


def attention(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, turns: Tensor, start: Tensor | None, eps: float
) -> Tensor:
    """See `umscale_kernels.attention`."""
    q, k, v = placed(qkv, q_gain, k_gain, turns, eps)
    if start is None:
        return heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    from umscale_kernels.attention.reference import visible

    mask = visible(qkv.shape[1], start, qkv.device)
    return heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def placed(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, turns: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised, turned queries and keys, and values, in the dtype of `qkv`: [B, H, S, d] each."""
    B, S, _ = qkv.shape
    q, k, v = qkv.chunk(3, -1)
    q, k = (rms_norm(x, gain, eps) for x, gain in ((q, q_gain), (k, k_gain)))
    d = 2 * turns.shape[1]
    q, k, v = (x.reshape(B, S, -1, d) for x in (q, k, v))
    q, k = rotate(q, turns).to(v.dtype), rotate(k, turns).to(v.dtype)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring channels of `x` [B, S, H, d] by `turns` [>= S, d / 2, 2]; float32 or better."""
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))  # [B, S, H, d / 2, 2]
    a, b = pairs.unbind(-1)
    cosine, sine = turns[: x.shape[1]].unsqueeze(1).unbind(-1)  # [S, 1, d / 2]
    return torch.stack((a * cosine - b * sine, a * sine + b * cosine), -1).flatten(-2)


def heads(mixed: Tensor) -> Tensor:
    """[B, H, S, d] -> [B, S, H d]"""
    return mixed.transpose(1, 2).flatten(2)
