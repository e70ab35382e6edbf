"""`lookup` in Triton: rows are gathered, used and dropped; nothing of shape [T, m, D] exists.

    z_k = <p, P[R_k]>   h_k = act(z_k)          o[slice q] = sum_k s_qk h_k V[R_k][slice q]
    g_qk = <do[slice q], V[R_k][slice q]>       ds_qk = h_k g_qk        dz_k = act'(z_k) sum_q s_qk g_qk
    dp = sum_k dz_k P[R_k]       dP[R] = sum_{lookups of R} dz p        dV[R][slice q] = sum s_q h do[slice q]

Forward: a program a token, tiles of BLOCK_M lookups; it saves z. A token needs rows no other token is likely to
need, so more tokens a program would only cost registers.

Backward, "sorted": lookups sorted by row, once for both tables; a program a table row holds V[R], gathers do and p of
its lookups (arrays of T rows, which the L2 cache keeps), and writes their ds and dz and the row's dV and dP, each
once. Rows read more than SPLIT times are summed in blocks of SPLIT sorted lookups first, so that a favourite row does
not keep one program busy while the others are done. dp is then a forward pass with P for values and dz for scores.
"atomic" (and frozen tables): a program a token gathers its rows again; table gradients are fp32 atomic adds.

Where there are fewer lookups than rows, programs belong to the distinct rows, of which there are at most as many as
lookups (the host does not learn how many), not to all rows of the table, most of which would find nothing to sum.

Table rows times their width exceed 32 bits: rows are 64-bit before they are multiplied.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 256  # lookups of one row that one program sums
# Elements of the rows that one program of a token pass, of a row pass, loads at once. Compiled for sm_90 a token pass
# then takes at most 123 registers a thread and 67 KB of shared memory; a row pass, 128 registers at 4 warps.
_TOKEN_TILE, _ROW_TILE = 8192, 6144
_STAGES = 3


@triton.jit
def _normal_cdf(z: tl.tensor) -> tl.tensor:
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _act(z: tl.tensor, GELU: tl.constexpr) -> tl.tensor:
    h = z
    if GELU:
        h = z * _normal_cdf(z)
    return h


@triton.jit
def _act_backward(dh: tl.tensor, z: tl.tensor, GELU: tl.constexpr) -> tl.tensor:
    dz = dh
    if GELU:
        dz = dh * (_normal_cdf(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z))
    return dz


@triton.jit
def _rows(
    ptr: tl.tensor, row: tl.tensor, live: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """[R, BLOCK_D], float32: the rows of a [., D] array at row [R]; 0 where not live."""
    d = tl.arange(0, BLOCK_D)[None, :]
    at = row.to(tl.int64)[:, None] * D + d
    return tl.load(ptr + at, mask=live[:, None] & (d < D), other=0.0).to(tl.float32)


@triton.jit
def _weights(
    s_ptr: tl.tensor, l: tl.tensor, live: tl.tensor, h: tl.tensor, C: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """[BLOCK_M, BLOCK_D]: s_q h of lookups l on the channels of each slice q."""
    core = tl.arange(0, BLOCK_D)[None, :] // (D // C)
    w = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for q in tl.static_range(C):
        s = tl.load(s_ptr + l * C + q, mask=live, other=0.0)
        w = tl.where(core == q, (s * h)[:, None], w)
    return w


@triton.jit
def _score_gradients(
    s_ptr: tl.tensor, ds_ptr: tl.tensor, l: tl.tensor, live: tl.tensor, h: tl.tensor, product: tl.tensor,
    C: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """sum_q s_q g_q [BLOCK_M] of lookups l, from product = do * V [BLOCK_M, BLOCK_D]; stores their ds."""
    core = tl.arange(0, BLOCK_D)[None, :] // (D // C)
    total = tl.zeros([BLOCK_M], tl.float32)
    for q in tl.static_range(C):
        g = tl.sum(tl.where(core == q, product, 0.0), axis=1)
        tl.store(ds_ptr + l * C + q, h * g, mask=live)
        total += tl.load(s_ptr + l * C + q, mask=live, other=0.0) * g
    return total


@triton.jit
def _forward(
    p_ptr: tl.tensor, s_ptr: tl.tensor, rows_ptr: tl.tensor, slots_ptr: tl.tensor, P_ptr: tl.tensor, V_ptr: tl.tensor,
    o_ptr: tl.tensor, z_ptr: tl.tensor, M: tl.constexpr, C: tl.constexpr, E: tl.constexpr, DP: tl.constexpr,
    DV: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """A program a token, or a token and block: it gathers the rows of that block alone."""
    t = tl.program_id(0).to(tl.int64)
    slot = t * E + tl.program_id(1)
    dv, dp = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DP)
    if DP > 0:
        p = tl.load(p_ptr + t * DP + dp, mask=dp < DP, other=0.0)
    o = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for first in tl.range(0, M, BLOCK_M, num_stages=STAGES):
        k = first + tl.arange(0, BLOCK_M)
        live = k < M
        l = t * M + k
        if E > 1:
            live = live & (tl.load(slots_ptr + l, mask=live, other=-1) == slot)
        row = tl.load(rows_ptr + l, mask=live, other=0)
        V = _rows(V_ptr, row, live, DV, BLOCK_DV)  # in flight while the pre-values are summed
        h = tl.full([BLOCK_M], 1.0, tl.float32)
        if DP > 0:
            z = tl.sum(_rows(P_ptr, row, live, DP, BLOCK_DP) * p[None, :], axis=1)
            tl.store(z_ptr + l, z, mask=live)
            h = _act(z, GELU)
        o += _weights(s_ptr, l, live, h, C, DV, BLOCK_M, BLOCK_DV) * V
    tl.store(o_ptr + slot * DV + dv, tl.sum(o, axis=0), mask=dv < DV)


@triton.jit
def _token_backward(
    do_ptr: tl.tensor, p_ptr: tl.tensor, s_ptr: tl.tensor, z_ptr: tl.tensor, rows_ptr: tl.tensor, slots_ptr: tl.tensor,
    P_ptr: tl.tensor, V_ptr: tl.tensor, dp_ptr: tl.tensor, ds_ptr: tl.tensor, dP_ptr: tl.tensor, dV_ptr: tl.tensor,
    M: tl.constexpr, C: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, GELU: tl.constexpr,
    ATOMIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    dv, dp = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DP)
    if E == 1:
        do = tl.load(do_ptr + t * DV + dv, mask=dv < DV, other=0.0)[None, :]
    if DP > 0:
        p = tl.load(p_ptr + t * DP + dp, mask=dp < DP, other=0.0)
        d_p = tl.zeros([BLOCK_M, BLOCK_DP], tl.float32)
    for first in tl.range(0, M, BLOCK_M, num_stages=STAGES):
        k = first + tl.arange(0, BLOCK_M)
        live = k < M
        l = t * M + k
        row = tl.load(rows_ptr + l, mask=live, other=0).to(tl.int64)
        if E > 1:
            do = _rows(do_ptr, tl.load(slots_ptr + l, mask=live, other=0), live, DV, BLOCK_DV)
        V = _rows(V_ptr, row, live, DV, BLOCK_DV)
        h = tl.full([BLOCK_M], 1.0, tl.float32)
        if DP > 0:
            P = _rows(P_ptr, row, live, DP, BLOCK_DP)
            z = tl.load(z_ptr + l, mask=live, other=0.0)
            h = _act(z, GELU)
        dz = _score_gradients(s_ptr, ds_ptr, l, live, h, V * do, C, DV, BLOCK_M, BLOCK_DV)
        if DP > 0:
            dz = _act_backward(dz, z, GELU)
            d_p += dz[:, None] * P
        if ATOMIC:
            d_V = _weights(s_ptr, l, live, h, C, DV, BLOCK_M, BLOCK_DV) * do
            mask = live[:, None] & (dv < DV)[None, :]
            tl.atomic_add(dV_ptr + row[:, None] * DV + dv[None, :], d_V, mask=mask, sem="relaxed")
            if DP > 0:
                mask = live[:, None] & (dp < DP)[None, :]
                d_P = dz[:, None] * p[None, :]
                tl.atomic_add(dP_ptr + row[:, None] * DP + dp[None, :], d_P, mask=mask, sem="relaxed")
    if DP > 0:
        tl.store(dp_ptr + t * DP + dp, tl.sum(d_p, axis=0), mask=dp < DP)


@triton.jit
def _put(
    ptr: tl.tensor, row: tl.tensor, x: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr, ADD: tl.constexpr
) -> None:
    """Store x [BLOCK_D] as a row of a [., D] array, or add it to that row, which no other program touches."""
    d = tl.arange(0, BLOCK_D)
    at = ptr + row.to(tl.int64) * D + d
    if ADD:
        x += tl.load(at, mask=d < D, other=0.0)
    tl.store(at, x, mask=d < D)


@triton.jit
def _sum_segment(
    begin: tl.tensor, end: tl.tensor, row: tl.tensor, order_ptr: tl.tensor, slots_ptr: tl.tensor, do_ptr: tl.tensor,
    p_ptr: tl.tensor, s_ptr: tl.tensor, z_ptr: tl.tensor, V_ptr: tl.tensor, ds_ptr: tl.tensor, dz_ptr: tl.tensor,
    dP_ptr: tl.tensor, dV_ptr: tl.tensor, out: tl.tensor, M: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
    DP: tl.constexpr, DV: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr,
    BLOCK_DV: tl.constexpr, ADD: tl.constexpr,
) -> None:  # fmt: skip
    """ds and dz of the sorted lookups [begin, end), all of one table row; their sums go to dP[out], dV[out]."""
    dv = tl.arange(0, BLOCK_DV)
    V = tl.load(V_ptr + row.to(tl.int64) * DV + dv, mask=dv < tl.where(begin < end, DV, 0), other=0.0).to(
        tl.float32
    )
    d_V = tl.zeros([BLOCK_DV], tl.float32)
    d_P = tl.zeros([BLOCK_DP], tl.float32)
    for first in tl.range(begin, end, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        live = i < end
        l = tl.load(order_ptr + i, mask=live, other=0)
        slot = l // M
        if E > 1:
            slot = tl.load(slots_ptr + l, mask=live, other=0)
        do = _rows(do_ptr, slot, live, DV, BLOCK_DV)
        h = tl.full([BLOCK_M], 1.0, tl.float32)
        if DP > 0:
            p = _rows(p_ptr, l // M, live, DP, BLOCK_DP)
            z = tl.load(z_ptr + l, mask=live, other=0.0)
            h = _act(z, GELU)
        dz = _score_gradients(s_ptr, ds_ptr, l, live, h, do * V[None, :], C, DV, BLOCK_M, BLOCK_DV)
        d_V += tl.sum(_weights(s_ptr, l, live, h, C, DV, BLOCK_M, BLOCK_DV) * do, axis=0)
        if DP > 0:
            dz = _act_backward(dz, z, GELU)
            tl.store(dz_ptr + l, dz, mask=live)
            d_P += tl.sum(dz[:, None] * p, axis=0)
    _put(dV_ptr, out, d_V, DV, BLOCK_DV, ADD)
    if DP > 0:
        _put(dP_ptr, out, d_P, DP, BLOCK_DP, ADD)


@triton.jit
def _long_segments(
    owner_ptr: tl.tensor, start_ptr: tl.tensor, rows_ptr: tl.tensor, order_ptr: tl.tensor, slots_ptr: tl.tensor,
    do_ptr: tl.tensor, p_ptr: tl.tensor, s_ptr: tl.tensor, z_ptr: tl.tensor, V_ptr: tl.tensor, ds_ptr: tl.tensor,
    dz_ptr: tl.tensor, partial_P_ptr: tl.tensor, partial_V_ptr: tl.tensor, M: tl.constexpr, C: tl.constexpr,
    E: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, GELU: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr,
) -> None:  # fmt: skip
    """Partial sums [2 blocks, D]: the segments at the two ends of each block of SPLIT lookups, where those are long."""
    slot = tl.program_id(0).to(tl.int64)
    block = slot // 2
    u = tl.load(owner_ptr + slot)
    start, end = tl.load(start_ptr + u), tl.load(start_ptr + u + 1)
    begins_here = start > block * SPLIT
    if (end - start > SPLIT) & (begins_here == (slot % 2 == 1)):  # else short, or the other end's as well
        begin = tl.maximum(start, block * SPLIT)
        _sum_segment(
            begin, tl.minimum(end, (block + 1) * SPLIT), tl.load(rows_ptr + u), order_ptr, slots_ptr, do_ptr, p_ptr,
            s_ptr, z_ptr, V_ptr, ds_ptr, dz_ptr, partial_P_ptr, partial_V_ptr, slot, M, C, E, DP, DV, GELU, BLOCK_M,
            BLOCK_DP, BLOCK_DV, False,
        )  # fmt: skip


@triton.jit
def _segments(
    start_ptr: tl.tensor, rows_ptr: tl.tensor, order_ptr: tl.tensor, slots_ptr: tl.tensor, do_ptr: tl.tensor,
    p_ptr: tl.tensor, s_ptr: tl.tensor, z_ptr: tl.tensor, V_ptr: tl.tensor, ds_ptr: tl.tensor, dz_ptr: tl.tensor,
    partial_P_ptr: tl.tensor, partial_V_ptr: tl.tensor, dP_ptr: tl.tensor, dV_ptr: tl.tensor, M: tl.constexpr,
    C: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, GELU: tl.constexpr, SPLIT: tl.constexpr,
    IN_PLACE: tl.constexpr, ADD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr,
) -> None:  # fmt: skip
    """dP, dV of segment u: its lookups summed, or its partial sums when it is long.

    At row u, zeros for an empty segment; or, IN_PLACE, at the segment's own row, and nothing for an empty one.
    """
    u = tl.program_id(0).to(tl.int64)
    start, end = tl.load(start_ptr + u), tl.load(start_ptr + u + 1)
    out = u
    if IN_PLACE:
        out = tl.load(rows_ptr + u).to(tl.int64)
    if end - start <= SPLIT:
        if (end > start) | (not IN_PLACE):
            _sum_segment(
                start, end, tl.load(rows_ptr + u), order_ptr, slots_ptr, do_ptr, p_ptr, s_ptr, z_ptr, V_ptr, ds_ptr,
                dz_ptr, dP_ptr, dV_ptr, out, M, C, E, DP, DV, GELU, BLOCK_M, BLOCK_DP, BLOCK_DV, ADD,
            )  # fmt: skip
    else:
        dv, dp = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DP)
        d_V = tl.zeros([BLOCK_DV], tl.float32)
        d_P = tl.zeros([BLOCK_DP], tl.float32)
        for block in tl.range(start // SPLIT, (end - 1) // SPLIT + 1):
            slot = 2 * block + (start > block * SPLIT).to(tl.int64)
            d_V += tl.load(partial_V_ptr + slot * DV + dv, mask=dv < DV, other=0.0)
            if DP > 0:
                d_P += tl.load(partial_P_ptr + slot * DP + dp, mask=dp < DP, other=0.0)
        _put(dV_ptr, out, d_V, DV, BLOCK_DV, ADD)
        if DP > 0:
            _put(dP_ptr, out, d_P, DP, BLOCK_DP, ADD)


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
    if rows.device.type == "cpu" and rows.numel() and not 0 <= rows.min() <= rows.max() < values.shape[0]:
        raise IndexError(f"lookup rows must lie in [0, {values.shape[0]})")
    o = s.new_empty(s.shape[0], n_blocks * values.shape[1])
    z = s.new_empty(rows.shape if pre_values is not None else 0)
    with torch.cuda.device_of(s):
        _run_forward(p, s, rows, slots, pre_values, values, gelu, o, z)
    return o, z


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

    `tables`: "none", "dense" (dP [N, Dp], dV [N, Dv]), "rows" (of the U distinct rows read, ascending), "add" (to the
    dense gradients `into`), or "atomic": dense, or to `into`, by atomic adds.
    """
    with torch.cuda.device_of(s):
        inputs = (d_o, p, s, z, rows, slots, pre_values, values, gelu)
        return (_by_token if tables in ("none", "atomic") else _by_row)(*inputs, tables, into)


def _by_token(
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
    into: tuple[Tensor | None, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    atomic = tables == "atomic"
    dp, ds = torch.empty_like(p), torch.empty_like(s)
    shapes = (pre_values.shape if pre_values is not None else 0, values.shape)
    dP, dV = (s.new_zeros(shape if atomic and into is None else 0) for shape in shapes)
    if s.shape[0]:
        sizes, tiles = _sizes(s, d_o, pre_values, values), _token_tiles(s, pre_values, values)
        sums = (dP, dV) if into is None else into
        tensors = (d_o, p, s, z, rows, slots, pre_values, values, dp, ds, *sums)
        _token_backward[(s.shape[0],)](*tensors, *sizes, gelu, atomic, **tiles)
    return dp, ds, rows.new_empty(0, dtype=torch.int64), dP, dV


def _by_row(
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
    into: tuple[Tensor | None, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_rows, lookups = values.shape[0], rows.numel()
    key = torch.int32 if n_rows < 2**31 else torch.int64
    sorted_rows, order = rows.reshape(-1).to(key).sort(stable=True)
    in_place = tables == "add" or (tables == "dense" and lookups < n_rows)
    if tables == "rows":  # a segment a distinct row; waits for their number
        segment_rows, counts = torch.unique_consecutive(sorted_rows, return_counts=True)
        start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    elif in_place:
        start, segment_rows = _distinct_segments(sorted_rows)
    else:  # a segment a table row: no number has to come back from the GPU
        segment_rows = torch.arange(n_rows + 1, device=rows.device, dtype=key)  # and the end
        start = torch.searchsorted(sorted_rows, segment_rows)
    n_segments = start.numel() - 1
    dp, ds, dz = torch.empty_like(p), torch.empty_like(s), torch.empty_like(z)
    dP, dV = s.new_empty(0), s.new_empty(0)
    if into is None:
        n_outputs, new = (n_rows, s.new_zeros) if in_place else (n_segments, s.new_empty)
        dV = new((n_outputs, values.shape[1]))
        dP = new((n_outputs, pre_values.shape[1]) if pre_values is not None else 0)
    sums = (dP, dV) if into is None else into
    sizes = _sizes(s, d_o, pre_values, values)
    tiles = _row_tiles(lookups, n_segments, pre_values, values)
    n_blocks = triton.cdiv(lookups, SPLIT)
    first = torch.arange(0, lookups, SPLIT, device=rows.device)
    ends = torch.stack([first, (first + SPLIT - 1).clamp(max=lookups - 1)], 1)
    owner = torch.searchsorted(start, ends, right=True) - 1  # segments at both ends of a block [n_blocks, 2]
    widths = (0 if pre_values is None else pre_values.shape[1], values.shape[1])
    partial_P, partial_V = (s.new_empty(2 * n_blocks * width) for width in widths)
    tensors = (start, segment_rows, order, slots, d_o, p, s, z, values, ds, dz, partial_P, partial_V)
    if n_blocks:
        _long_segments[(2 * n_blocks,)](owner, *tensors, *sizes, gelu, SPLIT, **tiles)
    if n_segments:
        flags = (SPLIT, in_place, into is not None)
        _segments[(n_segments,)](*tensors, *sums, *sizes, gelu, *flags, **tiles)
    if pre_values is not None:
        _run_forward(p, dz.unsqueeze(-1), rows, None, None, pre_values, False, dp, z)
    distinct = segment_rows.long() if tables == "rows" else rows.new_empty(0, dtype=torch.int64)
    return dp, ds, distinct, dP, dV


def _distinct_segments(sorted_rows: Tensor) -> tuple[Tensor, Tensor]:
    """(start [L + 1], row [L]) of a segment for each distinct one of the L sorted rows, then of empty ones at L."""
    lookups = sorted_rows.numel()
    begins = torch.ones_like(sorted_rows, dtype=torch.bool)
    begins[1:] = sorted_rows[1:] != sorted_rows[:-1]
    segment = begins.cumsum(0) - 1
    nowhere = lookups + 1  # lookups that begin no segment write there
    start = segment.new_full((lookups + 2,), lookups)
    place = torch.arange(lookups, device=sorted_rows.device)
    start.scatter_(0, torch.where(begins, segment, nowhere), place)
    start = start[: lookups + 1]
    return start, sorted_rows[start[:-1].clamp(max=max(lookups - 1, 0))]


def _run_forward(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    o: Tensor,
    z: Tensor,
) -> None:
    if s.shape[0]:
        sizes, tiles = _sizes(s, o, pre_values, values), _token_tiles(s, pre_values, values)
        grid = (s.shape[0], o.shape[1] // values.shape[1])
        _forward[grid](p, s, rows, slots, pre_values, values, o, z, *sizes, gelu, **tiles)


def _sizes(s: Tensor, o: Tensor, pre_values: Tensor | None, values: Tensor) -> tuple[int, int, int, int, int]:
    """(m, c, blocks, Dp, Dv) as the kernels take them."""
    d_pre_value = 0 if pre_values is None else pre_values.shape[1]
    return *s.shape[1:], o.shape[1] // values.shape[1], d_pre_value, values.shape[1]


def _tiles(pre_values: Tensor | None, values: Tensor, tile: int, lookups: int) -> dict[str, int]:
    """Block sizes: as many lookups at once as there are, as fit into a tile of rows, and at most 32."""
    block_dp = 1 if pre_values is None else triton.next_power_of_2(pre_values.shape[1])
    block_dv = triton.next_power_of_2(values.shape[1])
    fit = max(1, tile // (block_dp + block_dv))
    block_m = min(triton.next_power_of_2(max(lookups, 1)), 1 << (fit.bit_length() - 1), 32)
    return {"BLOCK_M": block_m, "BLOCK_DP": block_dp, "BLOCK_DV": block_dv}


def _token_tiles(s: Tensor, pre_values: Tensor | None, values: Tensor) -> dict[str, int]:
    """Tiles of at most a third of a token's lookups, so that all stages (row ids, rows, sums) have one to work on."""
    at_once = max(1, s.shape[1] // _STAGES)
    tiles = _tiles(pre_values, values, _TOKEN_TILE, 1 << (at_once.bit_length() - 1))
    elements = tiles["BLOCK_M"] * (tiles["BLOCK_DP"] + tiles["BLOCK_DV"])
    return {**tiles, "STAGES": _STAGES, "num_warps": 8 if elements > 4096 else 4}


def _row_tiles(lookups: int, n_segments: int, pre_values: Tensor | None, values: Tensor) -> dict[str, int]:
    tiles = _tiles(pre_values, values, _ROW_TILE, triton.cdiv(lookups, max(n_segments, 1)))
    return {**tiles, "num_warps": 4}  # few registers a program: latency is hidden by other programs
