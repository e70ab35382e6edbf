"""`lookup`: gather pre-values and values by row, weight them by score, sum over the kept rows.

    z_k = <p, P[R_k]>                     (1 without pre-values)
    o[slice q] = sum_k s_qk z_k V[R_k][slice q]            slice q: the q-th Dv / c channels

UltraMemV2 (arXiv 2508.18756), equation 15; per-core slices as in UltraMem. Table gradients are dense and the same
bits on every run: lookups are sorted by row and summed in a fixed order.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from umscale_kernels.backends import resolve
from umscale_kernels.lookup import aten, native, reference

_BACKENDS = {"aten": aten, "native": native}


def lookup(
    p: Tensor | None,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """o [T, Dv], float32 (float64 for float64 tables).

    `p` [T, Dp], `s` [T, m, c], `rows` [T, m] int32 or int64 in [0, N), `pre_values` [N, Dp] or None (then `p` is
    not used), `values` [N, Dv] with c | Dv. Tables may be bfloat16: sums are float32. Gradients to p, s and both
    tables. Raises ValueError on shapes that do not fit together, IndexError on rows out of range (CPU).
    """
    tokens, m, n_cores = s.shape
    if rows.shape != (tokens, m):
        raise ValueError(f"rows must be [{tokens}, {m}] for scores {list(s.shape)}, not {list(rows.shape)}")
    if values.shape[1] % n_cores:
        raise ValueError(f"d_value {values.shape[1]} is not a multiple of the {n_cores} cores")
    if pre_values is None:
        p = s.new_empty(0)
    elif p is None or p.shape != (tokens, pre_values.shape[1]) or pre_values.shape[0] != values.shape[0]:
        shapes = f"p {None if p is None else list(p.shape)}, pre_values {list(pre_values.shape)}"
        raise ValueError(f"{shapes} do not fit scores {list(s.shape)} and values {list(values.shape)}")
    if backend == "reference":
        return reference.lookup(p, s, rows, pre_values, values)
    return _lookup(p, s, rows, pre_values, values, backend)[0]


@torch.library.custom_op("umscale::lookup", mutates_args=())
def _lookup(
    p: Tensor, s: Tensor, rows: Tensor, pre_values: Tensor | None, values: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return _module(backend, s, values).lookup(p, s, rows, pre_values, values)


@_lookup.register_fake
def _(
    p: Tensor, s: Tensor, rows: Tensor, pre_values: Tensor | None, values: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(values)
    z_shape = (0,) if pre_values is None else rows.shape
    return s.new_empty((s.shape[0], values.shape[1]), dtype=dtype), s.new_empty(z_shape, dtype=dtype)


@torch.library.custom_op("umscale::lookup_backward", mutates_args=())
def _lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    table_grads: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _module(backend, s, values).lookup_backward(d_o, p, s, z, rows, pre_values, values, table_grads)


@_lookup_backward.register_fake
def _(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    table_grads: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _compute_dtype(values)
    return (
        torch.empty_like(p, dtype=dtype),
        torch.empty_like(s, dtype=dtype),
        s.new_empty(pre_values.shape if pre_values is not None and table_grads else 0, dtype=dtype),
        s.new_empty(values.shape if table_grads else 0, dtype=dtype),
    )


def _module(backend: str, s: Tensor, values: Tensor) -> ModuleType:
    supported = values.dtype in (torch.float32, torch.bfloat16)
    return _BACKENDS[resolve("lookup", backend, values.device.type, s.dtype, supported)]


def _compute_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    p, s, rows, pre_values, values, backend = inputs
    ctx.save_for_backward(p, s, output[1], rows, pre_values, values)
    ctx.backend = backend
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_o: Tensor | None, d_z: None) -> tuple[Tensor | None, ...]:
    if d_o is None:
        return (None,) * 6
    table_grads = any(ctx.needs_input_grad[3:5])
    tensors = ctx.saved_tensors
    dp, ds, dP, dV = _lookup_backward(d_o, *tensors, table_grads, ctx.backend)
    p, s, _, _, pre_values, values = tensors
    has_pre_values = pre_values is not None
    return (
        dp.to(p.dtype) if has_pre_values else None,
        ds.to(s.dtype),
        None,
        dP.to(pre_values.dtype) if has_pre_values and table_grads else None,
        dV.to(values.dtype) if table_grads else None,
        None,
    )


_lookup.register_autograd(_backward, setup_context=_setup)
