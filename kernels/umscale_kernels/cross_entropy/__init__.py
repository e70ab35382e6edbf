"""Cross-entropy of logits [.., V] against targets [..]: nats per token, float32.

In C++ on a CPU: one pass over the logits forward and one backward, and no log-probabilities kept in between (stock
PyTorch keeps them, as large as the logits). Everything else takes the stock operation.
"""

from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale_kernels import native
from umscale_kernels.operation import operation

_FORWARD = (c_int64, c_int64, c_void_p, c_void_p, c_int, c_void_p, c_void_p)
_BACKWARD = (c_int64, c_int64, *[c_void_p] * 4, c_int, c_int, c_void_p)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of every row, shaped as `targets`, 0 where the target is -1; float64 for float64 logits, else float32.

    `logits` [.., V], `targets` int64 [..] in [-1, V).
    """
    plain = logits.device.type != "cpu" or logits.dtype != torch.float32 or logits.numel() == 0
    if plain or not native.available("cross_entropy"):
        wide = logits.reshape(-1, logits.shape[-1]).to(torch.promote_types(logits.dtype, torch.float32))
        flat = F.cross_entropy(wide, targets.reshape(-1), ignore_index=-1, reduction="none")
        return flat.view(targets.shape)
    loss: Tensor = CrossEntropy.apply(logits, targets)
    return loss


class CrossEntropy(torch.autograd.Function):
    """The native path."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        loss, lse = _cross_entropy(logits, targets)
        ctx.save_for_backward(logits, targets, lse)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None]:
        return _cross_entropy_backward(d_loss, *ctx.saved_tensors), None


def _fake(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(targets.shape), logits.new_empty(targets.shape)


@operation("cross_entropy", _fake)
def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits, targets = logits.contiguous(), targets.contiguous()
    n = logits.shape[-1]
    if int(targets.max()) >= n or int(targets.min()) < -1:
        raise IndexError(f"targets must lie in [-1, {n})")
    loss, lse = logits.new_empty(targets.shape), logits.new_empty(targets.shape)
    function = native.function("cross_entropy", "umscale_cross_entropy", *_FORWARD)
    pointers = (x.data_ptr() for x in (loss, lse))
    function(targets.numel(), n, logits.data_ptr(), targets.data_ptr(), torch.get_num_threads(), *pointers)
    return loss, lse


def _fake_backward(d_loss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@operation("cross_entropy_backward", _fake_backward)
def _cross_entropy_backward(d_loss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor) -> Tensor:
    uniform = d_loss.numel() > 1 and not any(d_loss.stride())  # of a sum or mean: one number, expanded
    if not uniform:
        d_loss = d_loss.contiguous()
    logits, targets, lse = logits.contiguous(), targets.contiguous(), lse.contiguous()
    d_logits = torch.empty_like(logits)
    function = native.function("cross_entropy", "umscale_cross_entropy_backward", *_BACKWARD)
    pointers = (x.data_ptr() for x in (logits, targets, lse, d_loss))
    threads = torch.get_num_threads()
    function(targets.numel(), logits.shape[-1], *pointers, not uniform, threads, d_logits.data_ptr())
    return d_logits
