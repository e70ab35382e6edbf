"""Scores of queries against keys, which a selection is made by: bfloat16 operands, but a float32 result.

    S[t, i] = <q_t, k_i>

A product under `torch.autocast` rounds its result to bfloat16, which has 256 values between powers of two: pairs of
product keys then often tie where the last one is kept. Rounding the operands alone is what the product costs less by.
On CUDA the product itself returns float32; elsewhere the rounded operands are widened again, which is exact, and
multiplied in float32. Gradients are products in bfloat16, as under autocast.
"""

from typing import Any

import torch
from torch import Tensor


def key_scores(q: Tensor, keys: Tensor) -> Tensor:
    """q [.., T, k], keys [.., n, k], same leading axes -> [.., T, n]: float32, or float64 for float64 operands.

    Under `torch.autocast` to bfloat16 both operands are rounded to it.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
        found: Tensor = _RoundedProduct.apply(q, keys)
        return found
    return torch.matmul(q, keys.transpose(-1, -2))


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor) -> Tensor:
        a, b = q.bfloat16(), keys.bfloat16()
        ctx.save_for_backward(a, b)
        ctx.dtypes = q.dtype, keys.dtype
        lead = q.shape[:-2]
        a, b = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]).transpose(1, 2)
        with torch.autocast(q.device.type, enabled=False):
            if q.device.type == "cuda":
                product = torch.bmm(a, b, out_dtype=torch.float32)
            else:
                product = torch.bmm(a.float(), b.float())
        return product.view(*lead, *product.shape[1:])

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        d = d_scores.bfloat16()
        return torch.matmul(d, b).to(ctx.dtypes[0]), torch.matmul(d.transpose(-1, -2), a).to(ctx.dtypes[1])
