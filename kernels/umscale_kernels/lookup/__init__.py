"""`lookup`: gather pre-values and values by row, weight them by score, sum over the kept rows.

    z_k = <p, P[R_k]>      h_k = act(z_k)                  (h = 1 without pre-values)
    o[slice q] = sum_k s_qk h_k V[R_k][slice q]            slice q: the q-th Dv / c channels

UltraMemV2 (arXiv 2508.18756), equation 15; per-core slices as in UltraMem; with a GELU, PEER (arXiv 2407.04153).

Every table gradient is one fixed sum, over the lookups of a row in ascending (token, k), whatever the number of
threads: the same bits on every run. (`backward="atomic"` is the one exception.) Permuting the tokens permutes the
output and the gradients to p and s exactly; a row read more than once then sums in another order, so its gradient
agrees to rounding only.
"""

import importlib
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from umscale_kernels.backends import resolve
from umscale_kernels.lookup import native, reference
from umscale_kernels.lookup.parts import Part

Activation = Literal["none", "gelu"]
Backward = Literal["auto", "sorted", "atomic"]


def lookup(
    p: Tensor | None,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    *,
    activation: Activation = "none",
    sparse_grad: bool = False,
    read: tuple[Tensor | None, Tensor] | None = None,
    backward: Backward = "auto",
    parts: tuple[Part | None, Part] | None = None,
    backend: str = "auto",
) -> Tensor:
    """o [T, Dv], float32 (float64 for float64 tables).

    `p` [T, Dp], `s` [T, m, c], `rows` [T, m] int32 or int64 in [0, N), `pre_values` [N, Dp] or None (then `p` is
    not used), `values` [N, Dv] with c | Dv. Tables may be bfloat16: sums are float32. Gradients to p, s and both
    tables, those in the dtype of the table.

    `activation`: "gelu" is the exact one, x Phi(x).
    `sparse_grad`: table gradients are coalesced sparse COO tensors over the distinct rows read, ascending, and nothing
    of size [N, D] is allocated. On the way to `.grad` autograd drops the coalesced mark; the rows stay distinct and
    ascending. `torch.compile` runs such a call eagerly.
    `read`: copies of (pre_values, values), of another dtype if need be, which are gathered in their place; gradients
    still go to the tables.
    `parts`, of `table_parts`: where the dense gradients of the two tables go, if the backend can write there. Only for
    tables that nothing else reads.
    `backward`, of the triton backend: "sorted" sums the lookups of each row in a fixed order, "atomic" adds them as
    they come, "auto" chooses (`triton.table_mode`). The other backends always sort.

    Raises ValueError on operands or options that do not fit together, RuntimeError for "atomic" under
    `torch.use_deterministic_algorithms`, IndexError on rows out of range (CPU).
    """
    tokens, m, n_cores = s.shape
    if rows.shape != (tokens, m):
        raise ValueError(f"rows must be [{tokens}, {m}] for scores {list(s.shape)}, not {list(rows.shape)}")
    if values.shape[1] % n_cores:
        raise ValueError(f"d_value {values.shape[1]} is not a multiple of the {n_cores} cores")
    if pre_values is not None and (
        p is None or p.shape != (tokens, pre_values.shape[1]) or pre_values.shape[0] != values.shape[0]
    ):
        shapes = f"p {None if p is None else list(p.shape)}, pre_values {list(pre_values.shape)}"
        raise ValueError(f"{shapes} do not fit scores {list(s.shape)} and values {list(values.shape)}")
    if activation not in ("none", "gelu"):
        raise ValueError(f"activation must be none or gelu, not {activation!r}")
    if activation != "none" and pre_values is None:
        raise ValueError("an activation acts on pre-values, and there are none")
    if backward not in ("auto", "sorted", "atomic"):
        raise ValueError(f"backward must be auto, sorted or atomic, not {backward!r}")
    if backward == "atomic" and sparse_grad:
        raise ValueError("row-sparse gradients need backward sorted or auto: atomic adds into dense ones")
    source = (pre_values, values) if read is None else read
    for table, copy in zip((pre_values, values), source, strict=True):
        if (None if table is None else table.shape) != (None if copy is None else copy.shape):
            raise ValueError("the tables to read must have the shapes of pre_values and values")
    if source[0] is not None and source[0].dtype != source[1].dtype:
        raise ValueError(f"pre-values {source[0].dtype} and values {source[1].dtype} must have one dtype")
    if backend == "reference":
        if backward == "atomic":
            raise ValueError("backward atomic needs the triton backend, not reference")
        return reference.lookup(p, s, rows, pre_values, values, activation, sparse_grad, source)
    if p is None or pre_values is None:
        p = s.new_empty(0)
    floats = p.dtype == s.dtype == values.dtype == torch.float32 and not sparse_grad and backward != "atomic"
    if floats and not torch.compiler.is_compiling() and _backend(backend, s, source[1]) == "native":
        read_only = (None if source[0] is None else source[0].detach(), source[1].detach())
        out: Tensor = native.Lookup.apply(
            p, s, rows, pre_values, values, read_only, activation == "gelu", parts
        )
        return out
    run = _sparse_lookup if sparse_grad else _lookup
    copies = (None if x is None else x.detach() for x in source)
    return run(p, s, rows, pre_values, values, *copies, activation, sparse_grad, backward, backend)[0]


@torch.library.custom_op("umscale::lookup", mutates_args=())
def _lookup(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    read_pre_values: Tensor | None,
    read_values: Tensor,
    activation: str,
    sparse_grad: bool,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(o, z); the tables that are not read are there for their gradients."""
    name = _backend(backend, s, read_values)
    if backward == "atomic":
        if name != "triton":
            raise ValueError(f"backward atomic needs the triton backend, not {name}")
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("lookup with backward atomic is not deterministic; use sorted or auto")
    p, s = _activations(read_values, p, s)
    P = None if read_pre_values is None else read_pre_values.contiguous()
    return _module(name).lookup(p, s, rows.contiguous(), P, read_values.contiguous(), activation == "gelu")


@_lookup.register_fake
def _(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    read_pre_values: Tensor | None,
    read_values: Tensor,
    activation: str,
    sparse_grad: bool,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(read_values)
    z_shape = (0,) if pre_values is None else rows.shape
    return s.new_empty((s.shape[0], values.shape[1]), dtype=dtype), s.new_empty(z_shape, dtype=dtype)


_sparse_lookup = torch.compiler.disable(_lookup)  # a sparse gradient cannot be traced


@torch.library.custom_op("umscale::lookup_backward", mutates_args=())
def _lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    table_grads: bool,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, dP, dV) with dense table gradients; the tables are those that were read."""
    name = _backend(backend, s, values)
    tables = "dense" if table_grads else "none"
    if name == "triton" and table_grads:
        tables = _module(name).table_mode(backward, rows.numel(), values.shape[0])
    dp, ds, _, dP, dV = _run_backward(name, d_o, p, s, z, rows, pre_values, values, activation, tables)
    return dp, ds, dP, dV


@_lookup_backward.register_fake
def _(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    table_grads: bool,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _compute_dtype(values)
    return (
        s.new_empty(p.shape, dtype=dtype),
        s.new_empty(s.shape, dtype=dtype),
        s.new_empty(pre_values.shape if pre_values is not None and table_grads else 0, dtype=dtype),
        s.new_empty(values.shape if table_grads else 0, dtype=dtype),
    )


@torch.library.custom_op("umscale::lookup_row_gradients", mutates_args=())
def _lookup_row_gradients(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, distinct rows [U] ascending int64, dP [U, Dp], dV [U, Dv])."""
    name = _backend(backend, s, values)
    return _run_backward(name, d_o, p, s, z, rows, pre_values, values, activation, "rows")


@_lookup_row_gradients.register_fake
def _(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, n_distinct = _compute_dtype(values), torch.library.get_ctx().new_dynamic_size()
    return (
        s.new_empty(p.shape, dtype=dtype),
        s.new_empty(s.shape, dtype=dtype),
        rows.new_empty(n_distinct, dtype=torch.int64),
        s.new_empty((n_distinct, pre_values.shape[1]) if pre_values is not None else 0, dtype=dtype),
        s.new_empty((n_distinct, values.shape[1]), dtype=dtype),
    )


def _run_backward(
    name: str,
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    tables: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_o, p, s = _activations(values, d_o, p, s)
    rows, V, P = (
        rows.contiguous(),
        values.contiguous(),
        None if pre_values is None else pre_values.contiguous(),
    )
    return _module(name).lookup_backward(d_o, p, s, z, rows, P, V, activation == "gelu", tables)


def _backend(backend: str, s: Tensor, values: Tensor) -> str:
    supported = values.dtype in (torch.float32, torch.bfloat16)
    return resolve("lookup", backend, values.device.type, s.dtype, supported, supported)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"umscale_kernels.lookup.{name}")  # Triton may be missing


def _compute_dtype(values: Tensor) -> torch.dtype:
    """In which sums are formed: float64 tables keep theirs, everything else is float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _activations(values: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [x.to(_compute_dtype(values)).contiguous() for x in tensors]


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    p, s, rows, pre_values, values, read_pre_values, read_values, *options = inputs
    ctx.save_for_backward(p, s, output[1], rows, read_pre_values, read_values)
    ctx.table_dtypes = (None if pre_values is None else pre_values.dtype, values.dtype)
    ctx.activation, ctx.sparse_grad, ctx.backward_mode, ctx.backend = options
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_o: Tensor | None, d_z: None) -> tuple[Tensor | None, ...]:
    if d_o is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # once: where activations are recomputed a second time is refused
    p, s, _, _, pre_values, values = saved
    inputs = (d_o, *saved, ctx.activation)
    table_grads = any(ctx.needs_input_grad[3:5])
    if table_grads and ctx.sparse_grad:
        dp, ds, distinct, *rows_of = _lookup_row_gradients(*inputs, ctx.backend)
        d_tables = [
            None if dtype is None else _row_sparse(distinct, x.to(dtype), values.shape[0])
            for x, dtype in zip(rows_of, ctx.table_dtypes, strict=True)
        ]
    else:
        dp, ds, *dense = _lookup_backward(*inputs, table_grads, ctx.backward_mode, ctx.backend)
        d_tables = [
            x.to(dtype) if dtype is not None and table_grads else None
            for x, dtype in zip(dense, ctx.table_dtypes, strict=True)
        ]
    d_p = None if pre_values is None else dp.to(p.dtype)
    return (d_p, ds.to(s.dtype), None, *d_tables, *(None,) * 6)


def _row_sparse(distinct: Tensor, gradients: Tensor, n_rows: int) -> Tensor:
    """[N, D] with `gradients` [U, D] at the ascending rows `distinct` [U]."""
    return torch.sparse_coo_tensor(
        distinct.unsqueeze(0),
        gradients,
        (n_rows, gradients.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )


_lookup.register_autograd(_backward, setup_context=_setup)
