"""`attention`: causal self-attention from the joint projection, with query and key norms and rotary positions.

    q_i, k_i = turn_i(RMSNorm(x) gain)        o_i = sum_{start_i <= j <= i} softmax_j(<q_i, k_j> / sqrt(d)) v_j

Rotary positions (arXiv 2104.09864) turn neighbouring channels as one pair; norms are over all heads' channels.

reference   float32 or better, whole grids of scores
aten        stock PyTorch: SDPA
native      C++ on a CPU, float32 or bfloat16 in and out, float32 between: one pass over each sequence and head
"""

from typing import Any

import torch
from torch import Tensor

from umscale_kernels.attention import aten, native, reference
from umscale_kernels.backends import resolve
from umscale_kernels.operation import operation


def attention(
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    turns: Tensor,
    start: Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Mixed values [B, S, h] in the dtype of `qkv`. Gradients reach `qkv` and both gains.

    Args:
        qkv: [B, S, 3 h], queries, keys and values of all heads side by side.
        q_gain, k_gain: [h].
        turns: cosine and sine [>= S, d / 2, 2] of each position and pair of channels; h is a multiple of d.
        start: int64 [B, S], the first position that each query attends to, at most its own; None: all before it.

    Raises ValueError on operands that do not fit together.
    """
    B, S, width = qkv.shape
    h, d = q_gain.shape[0], 2 * turns.shape[1]
    if width != 3 * h or k_gain.shape != q_gain.shape or h % d or turns.shape[0] < S:
        raise ValueError(
            f"qkv {list(qkv.shape)}, gains {list(q_gain.shape)} and {list(k_gain.shape)} and turns "
            f"{list(turns.shape)} do not fit together"
        )
    if start is not None and start.shape != (B, S):
        raise ValueError(f"start must be {[B, S]}, not {list(start.shape)}")
    floats = all(x.dtype == torch.float32 for x in (q_gain, k_gain, turns)) and qkv.numel() > 0
    # The native path takes bfloat16 too, and computes in float32.
    dtype = torch.float32 if qkv.dtype == torch.bfloat16 else qkv.dtype
    name = resolve("attention", backend, qkv.device.type, dtype, floats, False)
    turns = turns[:S]
    if name == "native":
        out: Tensor = Attention.apply(qkv, q_gain, k_gain, turns, start, eps)
        return out
    module = reference if name == "reference" else aten
    return module.attention(qkv, q_gain, k_gain, turns, start, eps)


class Attention(torch.autograd.Function):
    """The native path."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_gain: Tensor,
        k_gain: Tensor,
        turns: Tensor,
        start: Tensor | None,
        eps: float,
    ) -> Tensor:
        out, lse, rstd = _attention(qkv, q_gain, k_gain, turns, start, eps)
        ctx.save_for_backward(qkv, q_gain, k_gain, turns, start, lse, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        d_qkv, d_gain = _attention_backward(d_out, *ctx.saved_tensors)
        return d_qkv, d_gain[0], d_gain[1], None, None, None


def _fake(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, turns: Tensor, start: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    B, S, h = qkv.shape[0], qkv.shape[1], q_gain.shape[0]
    lse, rstd = q_gain.new_empty(B, h // (2 * turns.shape[1]), S), q_gain.new_empty(B, S, 2)
    return qkv.new_empty(B, S, h), lse, rstd


@operation("attention", _fake)
def _attention(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, turns: Tensor, start: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dense = [x.contiguous() for x in (qkv, q_gain, k_gain, turns)]
    begins = None if start is None else start.contiguous()
    return native.attention(dense[0], dense[1], dense[2], dense[3], begins, eps)


def _fake_backward(
    d_out: Tensor,
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    turns: Tensor,
    start: Tensor | None,
    lse: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), q_gain.new_empty(2, q_gain.shape[0])


@operation("attention_backward", _fake_backward)
def _attention_backward(
    d_out: Tensor,
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    turns: Tensor,
    start: Tensor | None,
    lse: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor]:
    operands: list[Any] = [
        x if x is None else x.contiguous() for x in (d_out, qkv, q_gain, k_gain, turns, start, lse, rstd)
    ]
    return native.attention_backward(*operands)
