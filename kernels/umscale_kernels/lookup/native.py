"""`lookup` in C++ (lookup.cpp) on CPU: float32 activations, float32 or bfloat16 tables."""

from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from umscale_kernels import native
from umscale_kernels.lookup.parts import Part

_SIZES = (c_int, c_int64, c_int64, *[c_int] * 6)
_FORWARD = (*_SIZES, *[c_void_p] * 6, c_int, *[c_void_p] * 2)
_DISTINCT = (c_int64, c_int64, *[c_void_p] * 4)
_BACKWARD = (*_SIZES, *[c_void_p] * 8, c_int, *[c_void_p] * 3, c_int64, *[c_void_p] * 2)


def lookup(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    n_blocks: int,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor]:
    """(o [T, n_blocks Dv], z [T, m]); z is empty without pre-values, and `p` is then ignored."""
    rows = rows.long()
    o = s.new_empty(s.shape[0], n_blocks * values.shape[1])
    z = s.new_empty(rows.shape if pre_values is not None else (0,))
    function = native.function("lookup", "umscale_lookup", *_FORWARD)
    inputs = (_pointer(x) for x in (p, s, rows, slots, pre_values, values))
    sizes = _sizes(s, n_blocks, pre_values, values, gelu)
    if function(*sizes, *inputs, torch.get_num_threads(), o.data_ptr(), z.data_ptr()):
        raise IndexError(f"lookup rows must lie in [0, {values.shape[0]})")
    return o, z


class Lookup(torch.autograd.Function):
    """Eager `lookup` on float32 operands, without the cost of a custom operator; table gradients into `parts`."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        s: Tensor,
        rows: Tensor,
        slots: Tensor | None,
        n_blocks: int,
        pre_values: Tensor | None,
        values: Tensor,
        read: tuple[Tensor | None, Tensor],
        gelu: bool,
        parts: tuple[Part | None, Part] | None,
    ) -> Tensor:
        p, s, rows = p.contiguous(), s.contiguous(), rows.contiguous()
        P, V = None if read[0] is None else read[0].contiguous(), read[1].contiguous()
        o, z = lookup(p, s, rows, slots, n_blocks, P, V, gelu)
        ctx.save_for_backward(p, s, z, rows, slots, P, V)
        ctx.gelu, ctx.parts = gelu, parts
        return o

    @staticmethod
    def backward(ctx: Any, d_o: Tensor) -> tuple[Tensor | None, ...]:
        needed, parts = any(ctx.needs_input_grad[5:7]), ctx.parts
        tables = "none" if not needed else "dense" if parts is None else "rows"
        p, s, z, rows, slots, P, V = ctx.saved_tensors
        read = (p, s, z, rows, slots, P, V)
        dp, ds, distinct, dP, dV = lookup_backward(d_o.contiguous(), *read, gelu=ctx.gelu, tables=tables)
        has_pre_values = P is not None
        d_tables = (dP if has_pre_values else None, dV) if tables == "dense" else (None, None)
        if tables == "rows":
            parts[1].append((distinct, dV))
            if has_pre_values:
                parts[0].append((distinct, dP))
        return (dp if has_pre_values else None, ds, *(None,) * 3, *d_tables, *(None,) * 3)


def lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    tables: str,
    into: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, distinct rows, dP, dV), float32; those that do not apply are empty.

    `tables`: "none", "dense" (dP [N, Dp], dV [N, Dv]), "rows" (of the U distinct rows read, ascending), or "add":
    to the dense gradients `into`.
    """
    rows, n_rows = rows.long(), values.shape[0]
    dp, ds, dP, dV = torch.empty_like(p), torch.empty_like(s), s.new_empty(0), s.new_empty(0)
    distinct, place = rows.new_empty(0), None
    if tables == "rows":
        distinct, place = _distinct(rows, n_rows)
    if tables in ("dense", "rows"):
        n_rows = n_rows if tables == "dense" else distinct.numel()
        dV = s.new_zeros(n_rows, values.shape[1])
        if pre_values is not None:
            dP = s.new_zeros(n_rows, pre_values.shape[1])
    gradients = (dP, dV) if into is None else into
    if any(x is not None and not (x.is_contiguous() and x.dtype == s.dtype) for x in gradients):
        raise ValueError("gradients to add to must be contiguous and float32")
    function = native.function("lookup", "umscale_lookup_backward", *_BACKWARD)
    n_blocks = d_o.shape[1] // values.shape[1]
    function(
        *_sizes(s, n_blocks, pre_values, values, gelu),
        *(_pointer(x) for x in (d_o, p, s, z, rows, slots, pre_values, values)),
        torch.get_num_threads(),
        *(_pointer(x) for x in (dp, ds, place)),
        n_rows,
        *(_pointer(x) for x in gradients),
    )
    return dp, ds, distinct, dP, dV


def _distinct(rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """The rows read, ascending int64 [U], and where each is among them, int32 [N] (anything for the others)."""
    distinct, count = rows.new_empty(min(rows.numel(), n_rows)), rows.new_empty(1)
    place = rows.new_empty(n_rows, dtype=torch.int32)
    function = native.function("lookup", "umscale_lookup_distinct", *_DISTINCT)
    outputs = (x.data_ptr() for x in (distinct, place, count))
    function(rows.numel(), n_rows, rows.data_ptr(), *outputs)
    return distinct[: int(count)].clone(), place


def _sizes(
    s: Tensor, n_blocks: int, pre_values: Tensor | None, values: Tensor, gelu: bool
) -> tuple[int, ...]:
    """(bf16 tables?, T, N, m, c, blocks, Dp, Dv, gelu?) as the C functions take them."""
    d_pre_value = 0 if pre_values is None else pre_values.shape[1]
    return (
        values.dtype == torch.bfloat16,
        s.shape[0],
        values.shape[0],
        *s.shape[1:],
        n_blocks,
        d_pre_value,
        values.shape[1],
        gelu,
    )


def _pointer(x: Tensor | None) -> int | None:
    return x.data_ptr() if x is not None and x.numel() else None
