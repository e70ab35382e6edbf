"""The gate of SwiGLU (arXiv 2002.05202): [.., 2D] -> [.., D], y = silu(gate) * up, where x = [gate, up].

In C++ on a CPU: one pass forward and one backward, and no copy of the halves. Everything else takes the stock
operations.
"""

from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale_kernels import native

_FORWARD = (c_int64, c_int64, c_void_p, c_int, c_void_p)
_BACKWARD = (c_int64, c_int64, c_void_p, c_void_p, c_int, c_void_p)


def swiglu(x: Tensor) -> Tensor:
    """silu(first half) * second half of `x` [.., 2D] -> [.., D], same dtype. Raises ValueError for an odd width."""
    if x.shape[-1] % 2:
        raise ValueError(f"the last axis holds gate and up, so it must be even, not {x.shape[-1]}")
    if not _runs_native(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    y: Tensor = _swiglu(x)
    return y


def swiglu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Gradient of `swiglu` at `x` [.., 2D] for `dy` [.., D], below autograd, by the path its forward takes."""
    if _runs_native(x):
        dx: Tensor = _swiglu_backward(dy, x)
        return dx
    gate, up = x.chunk(2, dim=-1)
    return torch.cat((torch.ops.aten.silu_backward(dy * up, gate), dy * F.silu(gate)), dim=-1)


def _runs_native(x: Tensor) -> bool:
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and native.available("swiglu")
    )


@torch.library.custom_op("umscale::swiglu", mutates_args=())
def _swiglu(x: Tensor) -> Tensor:
    x = x.contiguous()
    width = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], width)
    function = native.function("swiglu", "umscale_swiglu", *_FORWARD)
    function(y.numel() // width, width, x.data_ptr(), torch.get_num_threads(), y.data_ptr())
    return y


@_swiglu.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("umscale::swiglu_backward", mutates_args=())
def _swiglu_backward(dy: Tensor, x: Tensor) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    width = x.shape[-1] // 2
    dx = torch.empty_like(x)
    function = native.function("swiglu", "umscale_swiglu_backward", *_BACKWARD)
    function(dy.numel() // width, width, dy.data_ptr(), x.data_ptr(), torch.get_num_threads(), dx.data_ptr())
    return dx


@_swiglu_backward.register_fake
def _(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> Tensor:
    dx: Tensor = _swiglu_backward(dy, *ctx.saved_tensors)
    return dx


_swiglu.register_autograd(_backward, setup_context=_setup)
