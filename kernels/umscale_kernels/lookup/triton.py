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
    p_ptr: tl.tensor, s_ptr: tl.tensor, rows_ptr: tl.tensor, P_ptr: tl.tensor, V_ptr: tl.tensor, o_ptr: tl.tensor,
    z_ptr: tl.tensor, M: tl.constexpr, C: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, GELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    dv, dp = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DP)
    if DP > 0:
        p = tl.load(p_ptr + t * DP + dp, mask=dp < DP, other=0.0)
    o = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for first in tl.range(0, M, BLOCK_M, num_stages=STAGES):
        k = first + tl.arange(0, BLOCK_M)
        live = k < M
        l = t * M + k
        row = tl.load(rows_ptr + l, mask=live, other=0)
        V = _rows(V_ptr, row, live, DV, BLOCK_DV)  # in flight while the pre-values are summed
        h = tl.full([BLOCK_M], 1.0, tl.float32)
        if DP > 0:
            z = tl.sum(_rows(P_ptr, row, live, DP, BLOCK_DP) * p[None, :], axis=1)
            tl.store(z_ptr + l, z, mask=live)
            h = _act(z, GELU)
        o += _weights(s_ptr, l, live, h, C, DV, BLOCK_M, BLOCK_DV) * V
    tl.store(o_ptr + t * DV + dv, tl.sum(o, axis=0), mask=dv < DV)


@triton.jit
def _token_backward(
    do_ptr: tl.tensor, p_ptr: tl.tensor, s_ptr: tl.tensor, z_ptr: tl.tensor, rows_ptr: tl.tensor, P_ptr: tl.tensor,
    V_ptr: tl.tensor, dp_ptr: tl.tensor, ds_ptr: tl.tensor, dP_ptr: tl.tensor, dV_ptr: tl.tensor, M: tl.constexpr,
    C: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, GELU: tl.constexpr, ATOMIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    dv, dp = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DP)
    do = tl.load(do_ptr + t * DV + dv, mask=dv < DV, other=0.0)
    if DP > 0:
        p = tl.load(p_ptr + t * DP + dp, mask=dp < DP, other=0.0)
        d_p = tl.zeros([BLOCK_M, BLOCK_DP], tl.float32)
    for first in tl.range(0, M, BLOCK_M, num_stages=STAGES):
        k = first + tl.arange(0, BLOCK_M)
        live = k < M
        l = t * M + k
        row = tl.load(rows_ptr + l, mask=live, other=0).to(tl.int64)
        V = _rows(V_ptr, row, live, DV, BLOCK_DV)
        h = tl.full([BLOCK_M], 1.0, tl.float32)
        if DP > 0:
            P = _rows(P_ptr, row, live, DP, BLOCK_DP)
            z = tl.load(z_ptr + l, mask=live, other=0.0)
            h = _act(z, GELU)
        dz = _score_gradients(s_ptr, ds_ptr, l, live, h, V * do[None, :], C, DV, BLOCK_M, BLOCK_DV)
        if DP > 0:
            dz = _act_backward(dz, z, GELU)
            d_p += dz[:, None] * P
        if ATOMIC:
            d_V = _weights(s_ptr, l, live, h, C, DV, BLOCK_M, BLOCK_DV) * do[None, :]
            mask = live[:, None] & (dv < DV)[None, :]
            tl.atomic_add(dV_ptr + row[:, None] * DV + dv[None, :], d_V, mask=mask, sem="relaxed")
            if DP > 0:
                mask = live[:, None] & (dp < DP)[None, :]
                d_P = dz[:, None] * p[None, :]
                tl.atomic_add(dP_ptr + row[:, None] * DP + dp[None, :], d_P, mask=mask, sem="relaxed")
    if DP > 0:
        tl.store(dp_ptr + t * DP + dp, tl.sum(d_p, axis=0), mask=dp < DP)


@triton.jit
def _sum_segment(
    begin: tl.tensor, end: tl.tensor, row: tl.tensor, order_ptr: tl.tensor, do_ptr: tl.tensor, p_ptr: tl.tensor,
    s_ptr: tl.tensor, z_ptr: tl.tensor, V_ptr: tl.tensor, ds_ptr: tl.tensor, dz_ptr: tl.tensor, dP_ptr: tl.tensor,
    dV_ptr: tl.tensor, out: tl.tensor, M: tl.constexpr, C: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr,
) -> None:  # fmt: skip
    """ds and dz of the sorted lookups [begin, end), all of one table row; their sums go to dP[out], dV[out]."""
    dv, dp = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DP)
    V = tl.load(V_ptr + row.to(tl.int64) * DV + dv, mask=dv < tl.where(begin < end, DV, 0), other=0.0).to(
        tl.float32
    )
    d_V = tl.zeros([BLOCK_DV], tl.float32)
    d_P = tl.zeros([BLOCK_DP], tl.float32)
    for first in tl.range(begin, end, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        live = i < end
        l = tl.load(order_ptr + i, mask=live, other=0)
        do = _rows(do_ptr, l // M, live, DV, BLOCK_DV)
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
    tl.store(dV_ptr + out * DV + dv, d_V, mask=dv < DV)
    if DP > 0:
        tl.store(dP_ptr + out * DP + dp, d_P, mask=dp < DP)


@triton.jit
def _long_segments(
    owner_ptr: tl.tensor, start_ptr: tl.tensor, rows_ptr: tl.tensor, order_ptr: tl.tensor, do_ptr: tl.tensor,
    p_ptr: tl.tensor, s_ptr: tl.tensor, z_ptr: tl.tensor, V_ptr: tl.tensor, ds_ptr: tl.tensor, dz_ptr: tl.tensor,
    partial_P_ptr: tl.tensor, partial_V_ptr: tl.tensor, M: tl.constexpr, C: tl.constexpr, DP: tl.constexpr,
    DV: tl.constexpr, GELU: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr,
    BLOCK_DV: tl.constexpr,
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
            begin, tl.minimum(end, (block + 1) * SPLIT), tl.load(rows_ptr + u), order_ptr, do_ptr, p_ptr, s_ptr,
            z_ptr, V_ptr, ds_ptr, dz_ptr, partial_P_ptr, partial_V_ptr, slot, M, C, DP, DV, GELU, BLOCK_M,
            BLOCK_DP, BLOCK_DV,
        )  # fmt: skip


@triton.jit
def _segments(
    start_ptr: tl.tensor, rows_ptr: tl.tensor, order_ptr: tl.tensor, do_ptr: tl.tensor, p_ptr: tl.tensor,
    s_ptr: tl.tensor, z_ptr: tl.tensor, V_ptr: tl.tensor, ds_ptr: tl.tensor, dz_ptr: tl.tensor,
    partial_P_ptr: tl.tensor, partial_V_ptr: tl.tensor, dP_ptr: tl.tensor, dV_ptr: tl.tensor, M: tl.constexpr,
    C: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, GELU: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_DP: tl.constexpr, BLOCK_DV: tl.constexpr,
) -> None:  # fmt: skip
    """dP, dV of segment u (0 when empty): its lookups summed, or its partial sums when it is long."""
    u = tl.program_id(0).to(tl.int64)
    start, end = tl.load(start_ptr + u), tl.load(start_ptr + u + 1)
    if end - start <= SPLIT:
        _sum_segment(
            start, end, tl.load(rows_ptr + u), order_ptr, do_ptr, p_ptr, s_ptr, z_ptr, V_ptr, ds_ptr, dz_ptr,
            dP_ptr, dV_ptr, u, M, C, DP, DV, GELU, BLOCK_M, BLOCK_DP, BLOCK_DV,
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
        tl.store(dV_ptr + u * DV + dv, d_V, mask=dv < DV)
        if DP > 0:
            tl.store(dP_ptr + u * DP + dp, d_P, mask=dp < DP)


def table_mode(backward: str, lookups: int, n_rows: int) -> str:
    """How dense table gradients are formed: "dense" (sorted) or "atomic".

    "auto" is atomic below one lookup per two table rows: most rows read are then read once, so adds do not meet, while
    the sorted pass starts a program for every row of the table. Above, sorting moves a fraction of the bytes
    (`traffic`). The threshold follows from these counts, not from timings.
    """
    if backward == "auto" and not torch.are_deterministic_algorithms_enabled():
        return "atomic" if 2 * lookups < n_rows else "dense"
    return "atomic" if backward == "atomic" else "dense"


def lookup(
    p: Tensor, s: Tensor, rows: Tensor, pre_values: Tensor | None, values: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """(o [T, Dv], z [T, m]); z is empty without pre-values, and `p` is then ignored."""
    if rows.device.type == "cpu" and rows.numel() and not 0 <= rows.min() <= rows.max() < values.shape[0]:
        raise IndexError(f"lookup rows must lie in [0, {values.shape[0]})")
    o = s.new_empty(s.shape[0], values.shape[1])
    z = s.new_empty(rows.shape if pre_values is not None else 0)
    with torch.cuda.device_of(s):
        _run_forward(p, s, rows, pre_values, values, gelu, o, z)
    return o, z


def lookup_backward(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    tables: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dp, ds, distinct rows, dP, dV), float32; those that do not apply are empty.

    `tables`: "none", "atomic" or "dense" (dP [N, Dp], dV [N, Dv]), or "rows" (of the U distinct rows read, ascending).
    """
    with torch.cuda.device_of(s):
        if tables in ("none", "atomic"):
            return _by_token(d_o, p, s, z, rows, pre_values, values, gelu, tables == "atomic")
        return _by_row(d_o, p, s, z, rows, pre_values, values, gelu, tables == "dense")


def _by_token(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    atomic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dp, ds = torch.empty_like(p), torch.empty_like(s)
    dP = s.new_zeros(pre_values.shape if pre_values is not None and atomic else 0)
    dV = s.new_zeros(values.shape if atomic else 0)
    if s.shape[0]:
        sizes, tiles = _sizes(s, pre_values, values), _token_tiles(s, pre_values, values)
        tensors = (d_o, p, s, z, rows, pre_values, values, dp, ds, dP, dV)
        _token_backward[(s.shape[0],)](*tensors, *sizes, gelu, atomic, **tiles)
    return dp, ds, rows.new_empty(0, dtype=torch.int64), dP, dV


def _by_row(
    d_o: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    dense: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_rows, lookups = values.shape[0], rows.numel()
    key = torch.int32 if n_rows < 2**31 else torch.int64
    sorted_rows, order = rows.reshape(-1).to(key).sort(stable=True)
    if dense:  # a segment a table row, many of them empty: no number has to come back from the GPU
        segment_rows = torch.arange(n_rows + 1, device=rows.device, dtype=key)  # and the end
        start = torch.searchsorted(sorted_rows, segment_rows)
    else:  # a segment a distinct row; waits for their number
        segment_rows, counts = torch.unique_consecutive(sorted_rows, return_counts=True)
        start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    n_segments = start.numel() - 1
    dp, ds, dz = torch.empty_like(p), torch.empty_like(s), torch.empty_like(z)
    dP = s.new_empty((n_segments, pre_values.shape[1]) if pre_values is not None else 0)
    dV = s.new_empty(n_segments, values.shape[1])
    sizes = _sizes(s, pre_values, values)
    tiles = _row_tiles(lookups, n_segments, pre_values, values)
    n_blocks = triton.cdiv(lookups, SPLIT)
    first = torch.arange(0, lookups, SPLIT, device=rows.device)
    ends = torch.stack([first, (first + SPLIT - 1).clamp(max=lookups - 1)], 1)
    owner = torch.searchsorted(start, ends, right=True) - 1  # segments at both ends of a block [n_blocks, 2]
    partial_P, partial_V = (s.new_empty(2 * n_blocks * x.shape[1] if x.numel() else 0) for x in (dP, dV))
    tensors = (start, segment_rows, order, d_o, p, s, z, values, ds, dz, partial_P, partial_V)
    if n_blocks:
        _long_segments[(2 * n_blocks,)](owner, *tensors, *sizes, gelu, SPLIT, **tiles)
    if n_segments:
        _segments[(n_segments,)](*tensors, dP, dV, *sizes, gelu, SPLIT, **tiles)
    if pre_values is not None:
        _run_forward(p, dz.unsqueeze(-1), rows, None, pre_values, False, dp, z)
    distinct = rows.new_empty(0, dtype=torch.int64) if dense else segment_rows.long()
    return dp, ds, distinct, dP, dV


def _run_forward(
    p: Tensor,
    s: Tensor,
    rows: Tensor,
    pre_values: Tensor | None,
    values: Tensor,
    gelu: bool,
    o: Tensor,
    z: Tensor,
) -> None:
    if s.shape[0]:
        sizes, tiles = _sizes(s, pre_values, values), _token_tiles(s, pre_values, values)
        _forward[(s.shape[0],)](p, s, rows, pre_values, values, o, z, *sizes, gelu, **tiles)


def _sizes(s: Tensor, pre_values: Tensor | None, values: Tensor) -> tuple[int, int, int, int]:
    """(m, c, Dp, Dv) as the kernels take them."""
    return s.shape[1], s.shape[2], 0 if pre_values is None else pre_values.shape[1], values.shape[1]


def _tiles(pre_values: Tensor | None, values: Tensor, tile: int, lookups: int) -> dict[str, int]:
    """Block sizes: as many lookups at once as there are, as fit into a tile of rows, and at most 32."""
    block_dp = 1 if pre_values is None else triton.next_power_of_2(pre_values.shape[1])
    block_dv = triton.next_power_of_2(values.shape[1])
    fit = max(1, tile // (block_dp + block_dv))
    block_m = min(triton.next_power_of_2(max(lookups, 1)), 1 << (fit.bit_length() - 1), 32)
    return {"BLOCK_M": block_m, "BLOCK_DP": block_dp, "BLOCK_DV": block_dv}


def _token_tiles(s: Tensor, pre_values: Tensor | None, values: Tensor) -> dict[str, int]:
    tiles = _tiles(pre_values, values, _TOKEN_TILE, s.shape[1])
    elements = tiles["BLOCK_M"] * (tiles["BLOCK_DP"] + tiles["BLOCK_DV"])
    # Three stages: row ids, rows, sums.
    return {**tiles, "STAGES": 3, "num_warps": 8 if elements > 4096 else 4}


def _row_tiles(lookups: int, n_segments: int, pre_values: Tensor | None, values: Tensor) -> dict[str, int]:
    tiles = _tiles(pre_values, values, _ROW_TILE, triton.cdiv(lookups, max(n_segments, 1)))
    return {**tiles, "num_warps": 4}  # few registers a program: latency is hidden by other programs
