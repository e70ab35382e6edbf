"""RMSNorm over the last axis: y = x / sqrt(mean(x²) + eps) * weight (arXiv 1910.07467).

Stock PyTorch on a CPU runs a pass over memory for every elementary operation and keeps their intermediates; the
C++ path reads each row once forward and once backward. Everything else (other devices and dtypes, no compiler)
takes the stock operation.
"""

from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale_kernels import native

_FORWARD = (c_int64, c_int64, c_void_p, c_void_p, c_float, c_int, c_void_p, c_void_p)
_BACKWARD = (c_int64, c_int64, *[c_void_p] * 4, c_int, c_void_p, c_void_p)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise `x` [.., D] with gain `weight` [D]; same shape and dtype. Gradients reach both."""
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or x.numel() == 0 or not native.available("rms_norm"):
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    y: Tensor = _rms_norm(x, weight, eps)[0]
    return y


@torch.library.custom_op("umscale::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    width = x.shape[-1]
    y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1])
    function = native.function("rms_norm", "umscale_rms_norm", *_FORWARD)
    function(
        x.numel() // width,
        width,
        x.data_ptr(),
        weight.data_ptr(),
        eps,
        torch.get_num_threads(),
        y.data_ptr(),
        rstd.data_ptr(),
    )
    return y, rstd


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


@torch.library.custom_op("umscale::rms_norm_backward", mutates_args=())
def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
    width = x.shape[-1]
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    function = native.function("rms_norm", "umscale_rms_norm_backward", *_BACKWARD)
    inputs = (dy.data_ptr(), x.data_ptr(), weight.data_ptr(), rstd.data_ptr())
    function(x.numel() // width, width, *inputs, torch.get_num_threads(), dx.data_ptr(), dw.data_ptr())
    return dx, dw


@_rms_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dy: Tensor, d_rstd: Tensor | None) -> tuple[Tensor, Tensor, None]:
    dx, dw = _rms_norm_backward(dy, *ctx.saved_tensors)
    return dx, dw, None


_rms_norm.register_autograd(_backward, setup_context=_setup)
