"""RMSNorm over the last axis: y = x / sqrt(mean(x²) + eps) * weight (arXiv 1910.07467).

Stock PyTorch on a CPU runs a pass over memory for every elementary operation and keeps their intermediates; the
C++ path reads each row once forward and once backward, in float32 or bfloat16. Everything else (other devices and
dtypes, no compiler) takes the stock operation.
"""

from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale_kernels import native
from umscale_kernels.operation import operation

_FORWARD = (c_int, c_int64, c_int64, c_void_p, c_void_p, c_float, c_int, c_void_p, c_void_p)
_BACKWARD = (c_int, c_int64, c_int64, *[c_void_p] * 4, c_int, c_void_p, c_void_p)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise `x` [.., D] with gain `weight` [D]; same shape and dtype. Gradients reach both.

    The gain has the dtype of `x`, or is float32 beside bfloat16; sums are float32 for both.
    """
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0
    if not on_cpu or weight.dtype != torch.float32 or not native.available("rms_norm"):
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    y: Tensor = RmsNorm.apply(x, weight, eps)
    return y


class RmsNorm(torch.autograd.Function):
    """The native path."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, dw = _rms_norm_backward(dy, *ctx.saved_tensors)
        return dx, dw, None


def _fake(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(x.shape[:-1])


@operation("rms_norm", _fake)
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    width = x.shape[-1]
    y, rstd = torch.empty_like(x), weight.new_empty(x.shape[:-1])
    function = native.function("rms_norm", "umscale_rms_norm", *_FORWARD)
    inputs, outputs = (x.data_ptr(), weight.data_ptr()), (y.data_ptr(), rstd.data_ptr())
    is_bf16 = x.dtype == torch.bfloat16
    function(is_bf16, x.numel() // width, width, *inputs, eps, torch.get_num_threads(), *outputs)
    return y, rstd


def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@operation("rms_norm_backward", _fake_backward)
def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
    width = x.shape[-1]
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    function = native.function("rms_norm", "umscale_rms_norm_backward", *_BACKWARD)
    inputs = (dy.data_ptr(), x.data_ptr(), weight.data_ptr(), rstd.data_ptr())
    sizes = (x.dtype == torch.bfloat16, x.numel() // width, width)
    function(*sizes, *inputs, torch.get_num_threads(), dx.data_ptr(), dw.data_ptr())
    return dx, dw
