"""`lookup`: gather pre-values and values by row, weight them by score, sum over the kept rows.

    z_k = <p, P[R_k]>      h_k = act(z_k)                  (h = 1 without pre-values)
    o[slice q] = sum_k s_qk h_k V[R_k][slice q]            slice q: the q-th Dv / c channels

UltraMemV2 (arXiv 2508.18756), equation 15; per-core slices as in UltraMem; with a GELU, PEER (arXiv 2407.04153).
UltraMem (arXiv 2411.12364) keeps the sums of its virtual blocks apart: lookup k then adds to block `blocks[t, k]` of
the output, and each row is gathered once all the same.

Layers that share tables would each return a gradient of all of them. `lookup_linked` returns stand-ins for the tables
too, for the next layer to take in their place: gradients then travel from lookup to lookup, and each adds the rows it
read to one buffer.

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
Backward = Literal["sorted", "atomic"]
Copies = tuple[Tensor | None, Tensor]
"""Pre-values, or None, and values."""


def lookup(
    p: Tensor | None,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    *,
    blocks: Tensor | None = None,
    n_blocks: int = 1,
    activation: Activation = "none",
    sparse_grad: bool = False,
    read: Copies | None = None,
    backward: Backward = "sorted",
    parts: tuple[Part | None, Part] | None = None,
    backend: str = "auto",
) -> Tensor:
    """o [T, n_blocks Dv], float32 (float64 for float64 tables).

    `p` [T, Dp], `s` [T, m, c], `rows` [T, m] int32 or int64 in [0, N), `pre_values` [N, Dp] or None (then `p` is
    not used), `values` [N, Dv] with c | Dv. Tables may be bfloat16: sums are float32. Gradients to p, s and both
    tables, those in the dtype of the table.

    `blocks` [T, m], integers in [0, n_blocks): which Dv channels of o a lookup adds to; None: all to the first.
    `activation`: "gelu" is the exact one, x Phi(x).
    `sparse_grad`: table gradients are coalesced sparse COO tensors over the distinct rows read, ascending, and nothing
    of size [N, D] is allocated. On the way to `.grad` autograd drops the coalesced mark; the rows stay distinct and
    ascending. `torch.compile` runs such a call eagerly.
    `read`: copies of (pre_values, values), of another dtype if need be, which are gathered in their place; gradients
    still go to the tables.
    `parts`, of `table_parts`: where the rows read and their gradients are put, if the backend can, in place of dense
    gradients of the two tables.
    `backward`, of the triton backend: "sorted" sums the lookups of each row in a fixed order, "atomic" adds them as
    they come, which moves fewer bytes where hardly a row is read twice. The other backends always sort.

    Raises ValueError on operands or options that do not fit together, RuntimeError for "atomic" under
    `torch.use_deterministic_algorithms`, IndexError on rows out of range (CPU).
    """
    source = (pre_values, values) if read is None else read
    _check(p, s, rows, (pre_values, values), source, blocks, n_blocks, activation, backward)
    if backward == "atomic" and sparse_grad:
        raise ValueError("row-sparse gradients need backward sorted: atomic adds into dense ones")
    if backend == "reference":
        if backward == "atomic":
            raise ValueError("backward atomic needs the triton backend, not reference")
        slots = _slots(blocks, n_blocks)
        return reference.lookup(
            p, s, rows, slots, n_blocks, pre_values, values, activation, sparse_grad, source
        )
    if p is None or pre_values is None:
        p = s.new_empty(0)
    slots = _slots(blocks, n_blocks)
    floats = p.dtype == s.dtype == values.dtype == torch.float32 and not sparse_grad and backward != "atomic"
    if floats and not torch.compiler.is_compiling() and _backend(backend, s, source[1]) == "native":
        inputs = (p, s, rows, slots, n_blocks, pre_values, values)
        out: Tensor = native.Lookup.apply(*inputs, _detached(source), activation == "gelu", parts)
        return out
    run = _sparse_lookup if sparse_grad else _lookup
    tables = (pre_values, values, *_detached(source))
    return run(p, s, rows, slots, *tables, n_blocks, activation, sparse_grad, backward, backend)[0]


def lookup_linked(
    p: Tensor | None,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    *,
    read: Copies,
    blocks: Tensor | None = None,
    n_blocks: int = 1,
    activation: Activation = "none",
    backward: Backward = "sorted",
    backend: str = "auto",
) -> tuple[Tensor, Copies]:
    """`lookup` in `read`, and stand-ins of (pre_values, values) that the next lookup of the same tables takes for them.

    Where gradients go and what is read come apart: the first call's `pre_values` and `values` are the tables, each
    later call's the stand-ins of the call before, which hold no numbers; `read` is what is gathered, in every call.
    A chain of n calls writes one dense gradient and adds to it n - 1 times, in order, the rows that a call read; n
    calls of `lookup` would write n dense gradients and add n - 1 of them. A stand-in must be taken by one call at most.

    Tables are float32 or float64. Options, gradients and errors as in `lookup`; ValueError for other tables.
    """
    _check(p, s, rows, (pre_values, values), read, blocks, n_blocks, activation, backward)
    if values.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"linked lookups add gradients in the tables' dtype: not {values.dtype}")
    if backend == "reference":
        raise ValueError("linked lookups need another backend than reference")
    if p is None or pre_values is None:
        p = s.new_empty(0)
    tables = (pre_values, values, *_detached(read))
    slots = _slots(blocks, n_blocks)
    o, _, next_pre_values, next_values = _lookup_linked(
        p, s, rows, slots, *tables, n_blocks, activation, backward, backend
    )
    return o, (None if pre_values is None else next_pre_values, next_values)


def _check(
    p: Tensor | None,
    s: Tensor,
    rows: Tensor,
    tables: Copies,
    source: Copies,
    blocks: Tensor | None,
    n_blocks: int,
    activation: str,
    backward: str,
) -> None:
    tokens, m, n_cores = s.shape
    pre_values, values = tables
    if rows.shape != (tokens, m):
        raise ValueError(f"rows must be [{tokens}, {m}] for scores {list(s.shape)}, not {list(rows.shape)}")
    if values.shape[1] % n_cores:
        raise ValueError(f"d_value {values.shape[1]} is not a multiple of the {n_cores} cores")
    if pre_values is not None and (
        p is None or p.shape != (tokens, pre_values.shape[1]) or pre_values.shape[0] != values.shape[0]
    ):
        shapes = f"p {None if p is None else list(p.shape)}, pre_values {list(pre_values.shape)}"
        raise ValueError(f"{shapes} do not fit scores {list(s.shape)} and values {list(values.shape)}")
    if n_blocks < 1 or (blocks is None and n_blocks > 1):
        raise ValueError(f"n_blocks = {n_blocks} needs blocks, [{tokens}, {m}]")
    if blocks is not None and blocks.shape != rows.shape:
        raise ValueError(f"blocks must be [{tokens}, {m}] as rows, not {list(blocks.shape)}")
    if activation not in ("none", "gelu"):
        raise ValueError(f"activation must be none or gelu, not {activation!r}")
    if activation != "none" and pre_values is None:
        raise ValueError("an activation acts on pre-values, and there are none")
    if backward not in ("sorted", "atomic"):
        raise ValueError(f"backward must be sorted or atomic, not {backward!r}")
    for table, copy in zip(tables, source, strict=True):
        if (None if table is None else table.shape) != (None if copy is None else copy.shape):
            raise ValueError("the tables to read must have the shapes of pre_values and values")
    if source[0] is not None and source[0].dtype != source[1].dtype:
        raise ValueError(f"pre-values {source[0].dtype} and values {source[1].dtype} must have one dtype")


def _slots(blocks: Tensor | None, n_blocks: int) -> Tensor | None:
    """Row of the output [T n_blocks, Dv] that every lookup adds to, int64 [T, m]; None: that of its token."""
    if blocks is None or n_blocks == 1:
        return None
    token = torch.arange(blocks.shape[0], device=blocks.device).unsqueeze(1)
    return token * n_blocks + blocks


def _detached(tables: Copies) -> Copies:
    return None if tables[0] is None else tables[0].detach(), tables[1].detach()


@torch.library.custom_op("umscale::lookup", mutates_args=())
def _lookup(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    read_pre_values: Tensor | None,
    read_values: Tensor,
    n_blocks: int,
    activation: str,
    sparse_grad: bool,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(o, z); the tables that are not read are there for their gradients."""
    return _forward(p, s, rows, slots, read_pre_values, read_values, n_blocks, activation, backward, backend)


def _forward(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    n_blocks: int,
    activation: str,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    name = _backend(backend, s, values)
    if backward == "atomic":
        if name != "triton":
            raise ValueError(f"backward atomic needs the triton backend, not {name}")
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("lookup with backward atomic is not deterministic; use sorted")
    p, s = _activations(values, p, s)
    P = None if pre_values is None else pre_values.contiguous()
    tables = (P, values.contiguous())
    return _module(name).lookup(p, s, rows.contiguous(), slots, n_blocks, *tables, activation == "gelu")


def _fake_forward(s: Tensor, rows: Tensor, read: Copies, n_blocks: int) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(read[1])
    z_shape = (0,) if read[0] is None else rows.shape
    return s.new_empty((s.shape[0], n_blocks * read[1].shape[1]), dtype=dtype), s.new_empty(
        z_shape, dtype=dtype
    )


@_lookup.register_fake
def _(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    read_pre_values: Tensor | None,
    read_values: Tensor,
    n_blocks: int,
    activation: str,
    sparse_grad: bool,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _fake_forward(s, rows, (read_pre_values, read_values), n_blocks)


_sparse_lookup = torch.compiler.disable(_lookup)  # a sparse gradient cannot be traced


@torch.library.custom_op("umscale::lookup_linked", mutates_args=())
def _lookup_linked(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    read_pre_values: Tensor | None,
    read_values: Tensor,
    n_blocks: int,
    activation: str,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o, z, stand-in of the pre-values, of the values)."""
    o, z = _forward(p, s, rows, slots, read_pre_values, read_values, n_blocks, activation, backward, backend)
    return o, z, _stand_in(pre_values, s), _stand_in(values, s)


@_lookup_linked.register_fake
def _(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    read_pre_values: Tensor | None,
    read_values: Tensor,
    n_blocks: int,
    activation: str,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    o, z = _fake_forward(s, rows, (read_pre_values, read_values), n_blocks)
    return o, z, _stand_in(pre_values, s), _stand_in(values, s)


def _stand_in(table: Tensor | None, s: Tensor) -> Tensor:
    """A tensor of the table's shape and of one element."""
    return s.new_zeros(0) if table is None else table.new_zeros(()).expand(table.shape)


@torch.library.custom_op("umscale::lookup_backward", mutates_args=())
def _lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    table_grads: bool,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, dP, dV) with dense table gradients; the tables are those that were read."""
    name = _backend(backend, s, values)
    tables = ("atomic" if backward == "atomic" else "dense") if table_grads else "none"
    dp, ds, _, dP, dV = _run_backward(name, d_o, p, s, z, rows, slots, pre_values, values, activation, tables)
    return dp, ds, dP, dV


@_lookup_backward.register_fake
def _(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
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


@torch.library.custom_op("umscale::lookup_backward_into", mutates_args=("d_pre_values", "d_values"))
def _lookup_backward_into(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    d_pre_values: Tensor | None,
    d_values: Tensor,
    activation: str,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(dp, ds); the gradients of the rows read are added to the dense table gradients."""
    name = _backend(backend, s, values)
    tables = "atomic" if backward == "atomic" else "add"
    inputs = (d_o, p, s, z, rows, slots, pre_values, values, activation, tables)
    return _run_backward(name, *inputs, (d_pre_values, d_values))[:2]


@_lookup_backward_into.register_fake
def _(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    d_pre_values: Tensor | None,
    d_values: Tensor,
    activation: str,
    backward: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(values)
    return s.new_empty(p.shape, dtype=dtype), s.new_empty(s.shape, dtype=dtype)


@torch.library.custom_op("umscale::lookup_row_gradients", mutates_args=())
def _lookup_row_gradients(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, distinct rows [U] ascending int64, dP [U, Dp], dV [U, Dv])."""
    name = _backend(backend, s, values)
    return _run_backward(name, d_o, p, s, z, rows, slots, pre_values, values, activation, "rows")


@_lookup_row_gradients.register_fake
def _(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    slots: Tensor | None,
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
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    activation: str,
    tables: str,
    into: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, distinct rows, dP, dV); empty are distinct rows but for `tables` "rows", dP and dV with `into`."""
    d_o, p, s = _activations(values, d_o, p, s)
    P = None if pre_values is None else pre_values.contiguous()
    inputs = (d_o, p, s, z, rows.contiguous(), slots, P, values.contiguous(), activation == "gelu", tables)
    return _module(name).lookup_backward(*inputs, into)


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


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    p, s, rows, slots, pre_values, values, read_pre_values, read_values, _, *options = inputs
    ctx.save_for_backward(p, s, output[1], rows, slots, read_pre_values, read_values)
    ctx.table_dtypes = (None if pre_values is None else pre_values.dtype, values.dtype)
    ctx.activation, ctx.sparse_grad, ctx.backward_mode, ctx.backend = options
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_o: Tensor | None, d_z: None) -> tuple[Tensor | None, ...]:
    if d_o is None:
        return (None,) * 13
    saved = ctx.saved_tensors  # once: where activations are recomputed a second time is refused
    p, s, _, _, _, pre_values, values = saved
    inputs = (d_o, *saved, ctx.activation)
    table_grads = any(ctx.needs_input_grad[4:6])
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
    return (d_p, ds.to(s.dtype), None, None, *d_tables, *(None,) * 7)


def _setup_linked(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    p, s, rows, slots, _, _, read_pre_values, read_values, _, *options = inputs
    ctx.save_for_backward(p, s, output[1], rows, slots, read_pre_values, read_values)
    ctx.activation, ctx.backward_mode, ctx.backend = options
    ctx.set_materialize_grads(False)


def _backward_linked(
    ctx: Any, d_o: Tensor | None, d_z: None, d_pre_values: Tensor | None, d_values: Tensor | None
) -> tuple[Tensor | None, ...]:
    if d_o is None:
        return (*(None,) * 4, d_pre_values, d_values, *(None,) * 6)
    saved = ctx.saved_tensors
    p, s, _, _, _, pre_values, _ = saved
    table_grads = any(ctx.needs_input_grad[4:6])
    options = (ctx.activation, ctx.backward_mode, ctx.backend)
    tables: tuple[Tensor | None, ...]
    if d_values is None:  # the last of the chain
        inputs = (d_o, *saved, ctx.activation, table_grads, *options[1:])
        dp, ds, *dense = _lookup_backward(*inputs)
        tables = (dense[0] if pre_values is not None else None, dense[1]) if table_grads else (None, None)
    else:
        tables = (d_pre_values if pre_values is not None else None, d_values)
        dp, ds = _lookup_backward_into(d_o, *saved, *tables, *options)
    d_p = None if pre_values is None else dp.to(p.dtype)
    return (d_p, ds.to(s.dtype), None, None, *tables, *(None,) * 6)


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
_lookup_linked.register_autograd(_backward_linked, setup_context=_setup_linked)
