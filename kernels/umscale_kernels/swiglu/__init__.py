"""The gate of SwiGLU (arXiv 2002.05202): [.., 2D] -> [.., D], y = silu(gate) * up, where x = [gate, up].

In C++ on a CPU: one pass forward and one backward, and no copy of the halves, in float32 or
bfloat16. Everything else takes the stock
operations.
"""

from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale_kernels import native
from umscale_kernels.operation import operation

_FORWARD = (c_int, c_int64, c_int64, c_void_p, c_int, c_void_p)
_BACKWARD = (c_int, c_int64, c_int64, c_void_p, c_void_p, c_int, c_void_p)


def swiglu(x: Tensor) -> Tensor:
    """silu(first half) * second half of `x` [.., 2D] -> [.., D], same dtype. Raises ValueError for an odd width."""
    if x.shape[-1] % 2:
        raise ValueError(f"the last axis holds gate and up, so it must be even, not {x.shape[-1]}")
    if not _runs_native(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    y: Tensor = SwiGlu.apply(x)
    return y


def swiglu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Gradient of `swiglu` at `x` [.., 2D] for `dy` [.., D], below autograd, by the path its forward takes."""
    if _runs_native(x):
        dx: Tensor = _swiglu_backward(dy, x)
        return dx
    gate, up = x.chunk(2, dim=-1)
    return torch.cat((torch.ops.aten.silu_backward(dy * up, gate), dy * F.silu(gate)), dim=-1)


def _runs_native(x: Tensor) -> bool:
    taken = x.dtype in (torch.float32, torch.bfloat16)
    return x.device.type == "cpu" and taken and x.numel() > 0 and native.available("swiglu")


class SwiGlu(torch.autograd.Function):
    """The native path."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y: Tensor = _swiglu(x)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        dx: Tensor = _swiglu_backward(dy, *ctx.saved_tensors)
        return dx


def _fake(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@operation("swiglu", _fake)
def _swiglu(x: Tensor) -> Tensor:
    x = x.contiguous()
    width = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], width)
    function = native.function("swiglu", "umscale_swiglu", *_FORWARD)
    sizes = (x.dtype == torch.bfloat16, y.numel() // width, width)
    function(*sizes, x.data_ptr(), torch.get_num_threads(), y.data_ptr())
    return y


def _fake_backward(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@operation("swiglu_backward", _fake_backward)
def _swiglu_backward(dy: Tensor, x: Tensor) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    width = x.shape[-1] // 2
    dx = torch.empty_like(x)
    function = native.function("swiglu", "umscale_swiglu_backward", *_BACKWARD)
    sizes = (x.dtype == torch.bfloat16, dy.numel() // width, width)
    function(*sizes, dy.data_ptr(), x.data_ptr(), torch.get_num_threads(), dx.data_ptr())
    return dx
