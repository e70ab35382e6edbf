"""`attention` in C++ (attention.cpp) on the CPU: float32, or bfloat16 `qkv` beside float32 for the rest."""

from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from umscale_kernels import native

_FORWARD = (c_int, *[c_int64] * 4, *[c_void_p] * 5, c_float, c_int, *[c_void_p] * 3)
_BACKWARD = (c_int, *[c_int64] * 4, *[c_void_p] * 8, c_int, *[c_void_p] * 2)


def attention(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, turns: Tensor, start: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, S, h], lse [B, H, S], rstd [B, S, 2]); operands contiguous, as `umscale_kernels.attention` has them."""
    B, S, h = qkv.shape[0], qkv.shape[1], q_gain.shape[0]
    n_heads = h // (2 * turns.shape[1])
    out, lse, rstd = qkv.new_empty(B, S, h), q_gain.new_empty(B, n_heads, S), q_gain.new_empty(B, S, 2)
    function = native.function("attention", "umscale_attention", *_FORWARD)
    inputs = (_pointer(x) for x in (qkv, q_gain, k_gain, turns, start))
    outputs = (x.data_ptr() for x in (out, lse, rstd))
    sizes = (qkv.dtype == torch.bfloat16, B, S, n_heads, h // n_heads)
    function(*sizes, *inputs, eps, torch.get_num_threads(), *outputs)
    return out, lse, rstd


def attention_backward(
    d_out: Tensor,
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    turns: Tensor,
    start: Tensor | None,
    lse: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor]:
    """(d_qkv as qkv, the gradients of both gains [2, h])."""
    B, n_heads, S = lse.shape
    h = q_gain.shape[0]
    d_qkv, d_gain = torch.empty_like(qkv), q_gain.new_empty(2, h)
    function = native.function("attention", "umscale_attention_backward", *_BACKWARD)
    inputs = (_pointer(x) for x in (d_out, qkv, q_gain, k_gain, turns, start, lse, rstd))
    outputs = (x.data_ptr() for x in (d_qkv, d_gain))
    sizes = (qkv.dtype == torch.bfloat16, B, S, n_heads, h // n_heads)
    function(*sizes, *inputs, torch.get_num_threads(), *outputs)
    return d_qkv, d_gain


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
