"""The last product and the cross-entropy of its result, a part of the tokens at a time.

    loss = 1/T sum_t (log sum_v exp(l_tv) - l_{t, y_t})        l = x W^T,  dl_tv = (softmax(l_t)_v - [v = y_t]) / T

Logits of 65,536 tokens over a vocabulary of 100,000 take 26 GB in fp32, as much again as their gradient. Both gradients
of the product follow from a token's own logits, so they are summed up in the forward pass and no logits are kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale.layers.precision import full_precision
from umscale_kernels import cross_entropy

PART_BYTES = 64 * 2**20
"""Of logits in fp32: what exceeds this is computed in parts of at most this size."""


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats per token, fp32 ``[]``, of logits ``x weight^T``; follows ``torch.autocast``.

    Args:
        x: ``[..., h]``.
        weight: ``[V, h]``.
        targets: int64, shaped as ``x`` without its last axis; each in [0, V).
    """
    flat, wanted = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    tokens = max(1, PART_BYTES // (4 * weight.shape[0]))
    if flat.shape[0] <= tokens:
        return cross_entropy(F.linear(flat, weight), wanted).mean()
    loss: Tensor = _InParts.apply(flat, weight, wanted, tokens)
    return loss


class _InParts(torch.autograd.Function):
    """``linear_cross_entropy`` of so many tokens at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, tokens: int) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        w = weight.to(dtype)
        total = torch.zeros((), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(device, enabled=False):
            for x_part, y, d_part in zip(
                x.split(tokens), targets.split(tokens), (x if d_x is None else d_x).split(tokens), strict=True
            ):
                part = x_part.to(dtype)
                logits = full_precision(part @ w.T)  # [t, V]
                log_sum = logits.logsumexp(1, keepdim=True)
                total += (log_sum - logits.gather(1, y.unsqueeze(1))).sum()
                d_logits = logits.sub_(log_sum).exp_()
                d_logits.scatter_add_(1, y.unsqueeze(1), d_logits.new_full((1, 1), -1.0).expand(len(y), 1))
                d_logits = d_logits.div_(x.shape[0]).to(dtype)
                if d_x is not None:
                    d_part.copy_(d_logits @ w)
                if d_weight is not None:
                    d_weight += d_logits.T @ part
        ctx.save_for_backward(*(t for t in (d_x, d_weight) if t is not None))
        return total / x.shape[0]

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        saved = iter(ctx.saved_tensors)
        d_x, d_weight = (next(saved) * d_loss if needed else None for needed in ctx.needs_input_grad[:2])
        return d_x, d_weight, None, None


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of every token in nats, fp32, shaped as ``targets [B, S]``; 0 where the target is -1."""
    return cross_entropy(logits, targets)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats per token; ``logits [B, S, V]``, ``targets [B, S]``."""
    return cross_entropy(logits, targets).mean()
