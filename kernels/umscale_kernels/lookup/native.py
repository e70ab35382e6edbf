"""`lookup` in C++ (lookup.cpp) on CPU: float32 activations, float32 or bfloat16 tables."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from umscale_kernels import native

_SIZES = (c_int, c_int64, c_int64, *[c_int] * 4)
_FORWARD = (*_SIZES, *[c_void_p] * 5, c_int, *[c_void_p] * 2)
_BACKWARD = (*_SIZES, *[c_void_p] * 7, c_int, *[c_void_p] * 4)


def lookup(
    p: Tensor, s: Tensor, rows: Tensor, pre_values: Tensor | None, values: Tensor
) -> tuple[Tensor, Tensor]:
    """(o [T, Dv], z [T, m]); z is empty without pre-values, and `p` is then ignored."""
    p, s, rows, pre_values, values = _prepared(p, s, rows, pre_values, values)
    o = s.new_empty(s.shape[0], values.shape[1])
    z = s.new_empty(rows.shape if pre_values is not None else (0,))
    function = native.function("lookup", "umscale_lookup", *_FORWARD)
    inputs = (_pointer(x) for x in (p, s, rows, pre_values, values))
    if function(*_sizes(s, pre_values, values), *inputs, torch.get_num_threads(), o.data_ptr(), z.data_ptr()):
        raise IndexError(f"lookup rows must lie in [0, {values.shape[0]})")
    return o, z


def lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    table_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, dP, dV), float32; those that do not apply are empty."""
    p, s, rows, pre_values, values = _prepared(p, s, rows, pre_values, values)
    d_o = d_o.float().contiguous()
    dp, ds = torch.empty_like(p), torch.empty_like(s)
    dP = s.new_empty(pre_values.shape if pre_values is not None and table_grads else 0)
    dV = s.new_empty(values.shape if table_grads else 0)
    function = native.function("lookup", "umscale_lookup_backward", *_BACKWARD)
    inputs = (_pointer(x) for x in (d_o, p, s, z, rows, pre_values, values))
    outputs = (_pointer(x) for x in (dp, ds, dP, dV))
    function(*_sizes(s, pre_values, values), *inputs, torch.get_num_threads(), *outputs)
    return dp, ds, dP, dV


def _prepared(
    p: Tensor, s: Tensor, rows: Tensor, pre_values: Tensor | None, values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Contiguous operands: float32 activations, int64 rows."""
    tables = None if pre_values is None else pre_values.contiguous()
    return (
        p.float().contiguous(),
        s.float().contiguous(),
        rows.long().contiguous(),
        tables,
        values.contiguous(),
    )


def _sizes(s: Tensor, pre_values: Tensor | None, values: Tensor) -> tuple[int, ...]:
    """(bf16 tables?, T, N, m, c, Dp, Dv) as the C functions take them."""
    d_pre_value = 0 if pre_values is None else pre_values.shape[1]
    return (
        values.dtype == torch.bfloat16,
        s.shape[0],
        values.shape[0],
        *s.shape[1:],
        d_pre_value,
        values.shape[1],
    )


def _pointer(x: Tensor | None) -> int | None:
    return x.data_ptr() if x is not None and x.numel() else None
