"""`grouped_mm`: every group of rows times a matrix of its own, the linear layer of a mixture of experts.

    y_r = W_e x_r           for offsets[e - 1] <= r < offsets[e]: rows sorted by expert, any number each
    dx_r = W_e^T dy_r       dW_e = sum_r dy_r x_r^T

The gradients are products of the same two kinds, so both are differentiable any number of times. bfloat16 on CUDA
runs PyTorch's grouped kernels without the host learning the group sizes. Everything else is a loop of plain products
straight into the result, with one copy of the offsets to the host.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """[R, N], the dtype of the operands; gradients reach `x` and `weight`.

    `x` [R, K], rows sorted by group; `weight` [E, N, K], each matrix as `nn.Linear` stores it; `offsets` [E], int32
    or int64, the end of each group: ascending, the last one R; empty groups are allowed. Follows `torch.autocast`.
    Raises ValueError on shapes or dtypes that do not fit together.
    """
    x, weight = autocast(x, weight)
    if weight.dim() != 3 or x.shape[1:] != weight.shape[2:] or offsets.shape != weight.shape[:1]:
        raise ValueError(
            f"x {list(x.shape)}, weight {list(weight.shape)} and offsets {list(offsets.shape)} "
            "must be [R, K], [E, N, K] and [E]"
        )
    if x.dtype != weight.dtype:
        raise ValueError(f"x and weight must have one dtype, not {x.dtype} and {weight.dtype}")
    y: Tensor = _grouped_mm(x, weight, offsets)
    return y


def autocast(*tensors: Tensor) -> list[Tensor]:
    """Tensors as `torch.autocast` hands them to a matrix product: cast where it is on, float64 left alone."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def group_sizes(offsets: Tensor) -> list[int]:
    """Rows of each group; waits for the device."""
    ends = offsets.tolist()
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def products(left: Iterable[Tensor], right: Iterable[Tensor], out: Iterable[Tensor]) -> None:
    """Write left_i @ right_i to out_i; a product over no rows is zero."""
    for a, b, c in zip(left, right, out, strict=True):
        torch.mm(a, b, out=c)


@torch.library.custom_op("umscale::grouped_mm", mutates_args=())
def _grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    if _has_kernel(x, *weight.shape[1:]):
        return torch._grouped_mm(x.contiguous(), _dense(weight).mT, offs=offsets.int())
    y = x.new_empty(x.shape[0], weight.shape[1])
    sizes = group_sizes(offsets)
    products(x.split(sizes), weight.mT.unbind(), y.split(sizes))
    return y


@_grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("umscale::grouped_outer", mutates_args=())
def _grouped_outer(dy: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """[E, N, K]: the sum of dy_r x_r^T over each group, of `dy` [R, N] and `x` [R, K]."""
    if _has_kernel(dy, dy.shape[1], x.shape[1]):
        weight = torch._grouped_mm(dy.contiguous().t(), x.contiguous(), offs=offsets.int())
        if torch.cuda.get_device_capability(dy.device) >= (10, 0):
            # Blackwell's kernels leave garbage for empty groups (pytorch/pytorch issue 172439).
            weight.masked_fill_((offsets.diff(prepend=offsets.new_zeros(1)) == 0)[:, None, None], 0)
        return weight
    weight = x.new_empty(offsets.shape[0], dy.shape[1], x.shape[1])
    sizes = group_sizes(offsets)
    products(dy.t().split(sizes, 1), x.split(sizes), weight.unbind())
    return weight


@_grouped_outer.register_fake
def _(dy: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0], dy.shape[1], x.shape[1])


def _has_kernel(x: Tensor, *widths: int) -> bool:
    """Whether PyTorch's grouped product takes rows like `x`: bfloat16, and strides that are multiples of 16 bytes."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or x.shape[0] == 0:
        return False
    return all(width % 8 == 0 for width in widths) and torch.cuda.get_device_capability(x.device) >= (8, 0)


def _dense(weight: Tensor) -> Tensor:
    """`weight` itself if its matrices are stored without gaps, rows or columns first, else a copy."""
    return weight if weight.is_contiguous() or weight.mT.is_contiguous() else weight.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_mm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, offsets = ctx.saved_tensors
    for_x, for_weight, _ = ctx.needs_input_grad
    dx = _grouped_mm(dy, weight.mT, offsets) if for_x else None
    return dx, _grouped_outer(dy, x, offsets) if for_weight else None, None


def _grouped_outer_backward(ctx: Any, d_weight: Tensor) -> tuple[Tensor, Tensor, None]:
    dy, x, offsets = ctx.saved_tensors
    return _grouped_mm(x, d_weight, offsets), _grouped_mm(dy, d_weight.mT, offsets), None


_grouped_mm.register_autograd(_grouped_mm_backward, setup_context=_save)
_grouped_outer.register_autograd(_grouped_outer_backward, setup_context=_save)
