"""`select` in Triton: one program per token and head, nothing but the kept pairs written to memory.

    key(x)                  order-preserving int32 of a float32; k largest = keys above a threshold + its first ties
    sides                   threshold of the n keys of a and of b, compacted to I and J by a cumulative sum
    bound                   m disjoint groups of grid cells reach it, hence at least m cells do
    survivors               cells that reach the bound, one bit each; at most LIST of them, usually about 1.2 m
    kept                    the m largest survivors

The m1 x m1 grid is evaluated twice (bound, survivors) in tiles of TILE rows and never stored. Selection is discrete:
sums are rounded as `reference` rounds them, so the forward kernel is launched with `enable_fp_fusion=False`, which
makes every product and sum its own instruction. Cells are compacted without shared-memory atomics: slot k of the
output looks up its word of 32 cells by bisection in the cumulative popcounts, then its bit in the word.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOWEST = tl.constexpr(-(2**31))  # key of padding; no number has it
_VALUES_PER_WARP = (
    1024  # 32 registers a lane for the widest tile: about 70 in all, no spills on sm_80 and sm_90
)


def select(
    scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, preselect_m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `umscale_kernels.select.select`; scores float32 or bfloat16."""
    scores, u, v, cores = (x.contiguous() for x in (scores, u, v, cores))
    lead, (_, rank, tokens, n), n_cores = scores.shape[:-4], scores.shape[-4:], cores.shape[-3]
    row = scores.new_empty((*lead, tokens, top_m), dtype=torch.int64)
    col = torch.empty_like(row)
    s = cores.new_empty((*lead, tokens, top_m, n_cores))
    block_m1 = max(32, triton.next_power_of_2(preselect_m))  # whole words of 32 cells
    block_n = triton.next_power_of_2(n)
    warps = _warps(max(block_n, block_m1 * block_m1 // 4))
    tile = min(block_m1, max(1, warps * _VALUES_PER_WARP // block_m1))
    with torch.cuda.device_of(scores):
        _forward[(tokens, lead.numel())](
            *(scores, u, v, cores, row, col, s),
            R=rank,
            C=n_cores,
            N=n,
            M1=preselect_m,
            M=top_m,
            BLOCK_N=block_n,
            BLOCK_M1=block_m1,
            BLOCK_M=triton.next_power_of_2(top_m),
            TILE=tile,
            # About 4 m groups keep the bound close and the search for it short.
            GROUPS=min(tile, triton.next_power_of_2(triton.cdiv(4 * top_m, preselect_m))),
            LIST=min(block_m1 * block_m1, triton.next_power_of_2(2 * top_m)),
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return row, col, s


def select_backward(
    ds: Tensor, scores: Tensor, cores: Tensor, row: Tensor, col: Tensor
) -> tuple[Tensor, Tensor]:
    """(dscores, dcores) of s = kept_scores(scores, cores, row, col); the same bits on every run."""
    ds, scores, cores, row, col = (x.contiguous() for x in (ds, scores, cores, row, col))
    lead, (_, rank, tokens, n), n_cores = scores.shape[:-4], scores.shape[-4:], cores.shape[-3]
    d_scores = torch.empty_like(scores)
    d_cores = cores.new_empty((*lead, tokens, n_cores, rank, rank))  # by token
    block_m, block_n = triton.next_power_of_2(row.shape[-1]), triton.next_power_of_2(n)
    warps = _warps(max(block_n, block_m * block_m // 4))
    with torch.cuda.device_of(scores):
        _backward[(tokens, lead.numel())](
            *(ds, scores, cores, row, col, d_scores, d_cores),
            R=rank,
            C=n_cores,
            N=n,
            M=row.shape[-1],
            BLOCK_N=block_n,
            BLOCK_M=block_m,
            TILE=min(block_m, max(1, warps * _VALUES_PER_WARP // block_m)),
            num_warps=warps,
        )
    return d_scores, d_cores.sum(-4, dtype=torch.float64).to(cores.dtype)


def _warps(values: int) -> int:
    """One warp where it can hold the tile: its reductions and gathers are then shuffles without barriers."""
    return min(8, max(1, values // _VALUES_PER_WARP))


@triton.jit
def _key(x: tl.tensor) -> tl.tensor:
    """int32 that orders float32 x; -0 and 0 share one key."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(bits == _LOWEST, 0, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key: tl.tensor) -> tl.tensor:
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _middle(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """floor((low + high) / 2) without overflow."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _cut(keys: tl.tensor, k: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """(above, ties): the k largest keys are those > above and the first `ties` of those equal to it."""
    present = keys != _LOWEST
    high = tl.max(keys, 0)
    low = tl.min(tl.where(present, keys, high), 0) - 1
    # Invariant: n_low = count(keys > low) >= k > count(keys > high) = n_high.
    n_low = tl.sum(present.to(tl.int32), 0)
    n_high = n_low * 0
    step = 0
    while (n_low != k) & (low + 1 < high):
        # In value space scores are spread evenly enough for interpolation to need few passes; every other pass
        # halves the interval, and after a few only integer bisection is left, which ends for any values.
        share = tl.where(step % 2 == 1, 0.5, (n_low - k) / (n_low - n_high))
        guess = _key(_value(low) + (_value(high) - _value(low)) * share)
        guess = tl.where((step < 12) & (guess > low) & (guess < high), guess, _middle(low, high))
        n_guess = tl.sum((keys > guess).to(tl.int32), 0)
        low, n_low = tl.where(n_guess >= k, guess, low), tl.where(n_guess >= k, n_guess, n_low)
        high, n_high = tl.where(n_guess >= k, high, guess), tl.where(n_guess >= k, n_high, n_guess)
        step += 1
    return tl.where(n_low == k, low, high), tl.where(n_low == k, 0, k - n_high)


@triton.jit
def _holder(ends: tl.tensor, slot: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """Index of the first of `ends` [SIZE] (ascending) that exceeds `slot`; SIZE - 1 if none does."""
    at = slot * 0
    step = SIZE // 2
    while step > 0:
        at = tl.where(tl.gather(ends, at + step - 1, 0) <= slot, at + step, at)
        step = step // 2
    return at


@triton.jit
def _largest(keys: tl.tensor, k: tl.tensor, SIZE: tl.constexpr, SLOTS: tl.constexpr) -> tl.tensor:
    """Ascending positions [SLOTS] of the k largest of keys [SIZE], lower positions first among equals."""
    above, ties = _cut(keys, k)
    equal = keys == above
    kept = (keys > above) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= ties))
    return _holder(tl.cumsum(kept.to(tl.int32), 0), tl.arange(0, SLOTS), SIZE)


@triton.jit
def _popcount(words: tl.tensor) -> tl.tensor:
    x = words.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _nth_bit(words: tl.tensor, k: tl.tensor) -> tl.tensor:
    """Position of set bit number k (from 0, ascending) of each word; 31 if there is none."""
    at = words * 0
    for level in tl.static_range(5):
        half = 16 >> level
        n_low = _popcount((words >> at) & ((1 << half) - 1))
        at = tl.where(k >= n_low, at + half, at)
        k = tl.where(k >= n_low, k - n_low, k)
    return at


@triton.jit
def _first_bits(words: tl.tensor, k: tl.tensor) -> tl.tensor:
    """The first k set bits of the words in ascending order, the others cleared."""
    count = _popcount(words)
    left = tl.maximum(k - (tl.cumsum(count, 0) - count), 0)
    return tl.where(left >= count, words, words & ((1 << _nth_bit(words, left)) - 1))


@triton.jit
def _candidates(
    side: tl.tensor, weights: tl.tensor, rank_stride: tl.tensor,
    R: tl.constexpr, N: tl.constexpr, M1: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M1: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Ascending ids [BLOCK_M1] of the M1 largest of sum_a weights_a S_a; the padding repeats a valid id."""
    if M1 == N:
        return tl.minimum(tl.arange(0, BLOCK_M1), N - 1)
    ids = tl.arange(0, BLOCK_N)
    total = tl.load(weights) * tl.load(side + ids, ids < N, 0.0).to(tl.float32)
    for a in tl.static_range(1, R):
        score = tl.load(side + a * rank_stride + ids, ids < N, 0.0).to(tl.float32)
        total += tl.load(weights + a) * score
    return tl.minimum(_largest(tl.where(ids < N, _key(total), _LOWEST), M1, BLOCK_N, BLOCK_M1), N - 1)


@triton.jit
def _scores(
    token: tl.tuple, rows: tl.tensor, cols: tl.tensor, R: tl.constexpr, C: tl.constexpr, GRID: tl.constexpr
) -> tl.tensor:
    """sum_ab S[row, a] (sum_q C_q[a, b]) S[col, b] in ascending q, a, b; of all rows x cols, or pair by pair.

    `token`: pointers to its row scores and column scores, the stride between ranks, the pointer to the cores.
    """
    row_side, col_side, rank_stride, cores = token
    for b in tl.static_range(R):
        for a in tl.static_range(R):
            core = tl.load(cores + a * R + b)
            for q in tl.static_range(1, C):
                core += tl.load(cores + (q * R + a) * R + b)
            product = core * tl.load(row_side + a * rank_stride + rows).to(tl.float32)
            if a == 0:
                weighted = product
            else:
                weighted += product
        score = tl.load(col_side + b * rank_stride + cols).to(tl.float32)
        if GRID:
            product = weighted[:, None] * score[None, :]
        else:
            product = weighted * score
        if b == 0:
            total = product
        else:
            total += product
    return total


@triton.jit
def _tile_keys(
    tile: tl.tensor, token: tl.tuple, rows: tl.tensor, cols: tl.tensor,
    R: tl.constexpr, C: tl.constexpr, M1: tl.constexpr, BLOCK_M1: tl.constexpr, TILE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Keys [TILE, BLOCK_M1] of rows tile * TILE .. of the grid."""
    i = tile * TILE + tl.arange(0, TILE)
    j = tl.arange(0, BLOCK_M1)
    total = _scores(token, tl.gather(rows, i, 0), cols, R, C, True)
    return tl.where((i[:, None] < M1) & (j[None, :] < M1), _key(total), _LOWEST)


@triton.jit
def _words_above(
    floor: tl.tensor, token: tl.tuple, rows: tl.tensor, cols: tl.tensor,
    R: tl.constexpr, C: tl.constexpr, M1: tl.constexpr, BLOCK_M1: tl.constexpr, TILE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """One bit per cell, set where its key exceeds `floor`: [BLOCK_M1^2 / 32] int32, in ascending (i, j)."""
    TILE_WORDS: tl.constexpr = TILE * BLOCK_M1 // 32
    tiles = tl.arange(0, BLOCK_M1 // TILE)
    words = tl.zeros([BLOCK_M1 // TILE, TILE_WORDS], tl.int32)
    for tile in range((M1 + TILE - 1) // TILE):
        keys = _tile_keys(tile, token, rows, cols, R, C, M1, BLOCK_M1, TILE)
        keys = tl.reshape(keys, (TILE_WORDS, 32))
        packed = tl.sum(tl.where(keys > floor, 1 << tl.arange(0, 32)[None, :], 0), 1)
        words = tl.where(tiles[:, None] == tile, packed[None, :], words)
    return tl.reshape(words, (BLOCK_M1 * BLOCK_M1 // 32,))


@triton.jit
def _forward(
    scores: tl.tensor, u: tl.tensor, v: tl.tensor, cores: tl.tensor,
    row_out: tl.tensor, col_out: tl.tensor, s_out: tl.tensor,
    R: tl.constexpr, C: tl.constexpr, N: tl.constexpr, M1: tl.constexpr, M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M1: tl.constexpr, BLOCK_M: tl.constexpr,
    TILE: tl.constexpr, GROUPS: tl.constexpr, LIST: tl.constexpr,
) -> None:  # fmt: skip
    """scores [H, 2, R, T, N], cores [H, C, R, R] -> row_out and col_out [H, T, M], s_out [H, T, M, C]."""
    tokens = tl.num_programs(0).to(tl.int64)
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rank_stride = tokens * N
    row_side = scores + head * 2 * R * rank_stride + t * N
    col_side = row_side + R * rank_stride
    cores += head * C * R * R
    token = (row_side, col_side, rank_stride, cores)
    rows = _candidates(row_side, u + head * R, rank_stride, R, N, M1, BLOCK_N, BLOCK_M1)
    cols = _candidates(col_side, v + head * R, rank_stride, R, N, M1, BLOCK_N, BLOCK_M1)

    best = tl.full([TILE, BLOCK_M1], _LOWEST, tl.int32)
    for tile in range((M1 + TILE - 1) // TILE):
        keys = _tile_keys(tile, token, rows, cols, R, C, M1, BLOCK_M1, TILE)
        best = tl.maximum(best, keys)
    groups = tl.max(tl.reshape(best, (TILE // GROUPS, GROUPS, BLOCK_M1)), 0)
    groups = tl.reshape(groups, (GROUPS * BLOCK_M1,))
    above, ties = _cut(groups, M)
    floor = tl.where(ties > 0, above - 1, above)
    words = _words_above(floor, token, rows, cols, R, C, M1, BLOCK_M1, TILE)
    found = tl.sum(_popcount(words), 0)

    # Rarely the best cells share few groups, or many cells tie: raise the floor until the list takes its cells.
    ceiling = tl.max(groups, 0)
    while (found > LIST) & (floor + 1 < ceiling):
        guess = _middle(floor, ceiling)
        fewer = _words_above(guess, token, rows, cols, R, C, M1, BLOCK_M1, TILE)
        n_fewer = tl.sum(_popcount(fewer), 0)
        ceiling = tl.where(n_fewer >= M, ceiling, guess)
        floor = tl.where(n_fewer >= M, guess, floor)
        words = tl.where(n_fewer >= M, fewer, words)
        found = tl.where(n_fewer >= M, n_fewer, found)
    if found > LIST:  # the threshold is exact: fewer than M cells exceed it, the first of its ties fill up
        more = _words_above(ceiling, token, rows, cols, R, C, M1, BLOCK_M1, TILE)
        words = more | _first_bits(words & ~more, M - tl.sum(_popcount(more), 0))
        found = found * 0 + M

    slot = tl.arange(0, LIST)
    count = _popcount(words)
    ends = tl.cumsum(count, 0)
    word = _holder(ends, slot, BLOCK_M1 * BLOCK_M1 // 32)
    cell = word * 32 + _nth_bit(tl.gather(words, word, 0), slot - tl.gather(ends - count, word, 0))
    row, col = tl.gather(rows, cell // BLOCK_M1, 0), tl.gather(cols, cell % BLOCK_M1, 0)
    keys = _key(_scores(token, row, col, R, C, False))
    kept = _largest(tl.where(slot < found, keys, _LOWEST), M, LIST, BLOCK_M)
    row, col = tl.gather(row, kept, 0), tl.gather(col, kept, 0)

    k = tl.arange(0, BLOCK_M)
    out = (head * tokens + t) * M + k
    tl.store(row_out + out, row.to(tl.int64), k < M)
    tl.store(col_out + out, col.to(tl.int64), k < M)
    for q in tl.static_range(C):
        s = _scores((row_side, col_side, rank_stride, cores + q * R * R), row, col, R, 1, False)
        tl.store(s_out + out * C + q, s, k < M)


@triton.jit
def _scatter(
    ids: tl.tensor, other_ids: tl.tensor, other_side: tl.tensor, d_side: tl.tensor, ds: tl.tensor,
    cores: tl.tensor, rank_stride: tl.tensor,
    OWN: tl.constexpr, OTHER: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """dS_a[i] = sum over kept k with id i of sum_qb ds_kq C_q[a, b] S'_b[k], S' the other side.

    Every kept pair adds up all pairs of its id in one fixed order; the first pair of the id stores the sum.
    `C_q[a, b]` is at cores[q R^2 + a OWN + b OTHER].
    """
    k = tl.arange(0, BLOCK_M)
    own = tl.load(ids + k, k < M, -1)
    for a in tl.static_range(R):
        total = tl.zeros([BLOCK_M], tl.float32)
        first = tl.full([BLOCK_M], BLOCK_M, tl.int32)
        for start in range(0, M, TILE):
            t = start + tl.arange(0, TILE)
            other = tl.load(other_ids + t, t < M, 0)
            grad = tl.zeros([TILE], tl.float32)
            for b in tl.static_range(R):
                d_pair = tl.zeros([TILE], tl.float32)
                for q in tl.static_range(C):
                    core = tl.load(cores + q * R * R + a * OWN + b * OTHER)
                    d_pair += core * tl.load(ds + t * C + q, t < M, 0.0)
                grad += d_pair * tl.load(other_side + b * rank_stride + other).to(tl.float32)
            same = tl.load(ids + t, t < M, -2)[:, None] == own[None, :]
            total += tl.sum(tl.where(same, grad[:, None], 0.0), 0)
            first = tl.minimum(first, tl.min(tl.where(same, t[:, None], BLOCK_M), 0))
        tl.store(d_side + a * rank_stride + own, total.to(d_side.dtype.element_ty), (k < M) & (first == k))


@triton.jit
def _backward(
    ds: tl.tensor, scores: tl.tensor, cores: tl.tensor, row: tl.tensor, col: tl.tensor,
    d_scores: tl.tensor, d_cores: tl.tensor,
    R: tl.constexpr, C: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """ds [H, T, M, C] -> d_scores [H, 2, R, T, N], dense, and each token's term of d_cores [H, T, C, R, R]."""
    tokens = tl.num_programs(0).to(tl.int64)
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rank_stride = tokens * N
    at = head * tokens + token
    row += at * M
    col += at * M
    ds += at * M * C
    cores += head * C * R * R
    row_side = scores + head * 2 * R * rank_stride + token * N
    col_side = row_side + R * rank_stride
    d_row = d_scores + head * 2 * R * rank_stride + token * N
    d_col = d_row + R * rank_stride

    ids = tl.arange(0, BLOCK_N)
    zero = tl.zeros([BLOCK_N], d_scores.dtype.element_ty)
    for a in tl.static_range(2 * R):
        tl.store(d_row + a * rank_stride + ids, zero, ids < N)
    tl.debug_barrier()  # zeros and sums of one address come from different threads of this program
    _scatter(row, col, col_side, d_row, ds, cores, rank_stride, R, 1, R, C, M, BLOCK_M, TILE)
    _scatter(col, row, row_side, d_col, ds, cores, rank_stride, 1, R, R, C, M, BLOCK_M, TILE)

    k = tl.arange(0, BLOCK_M)
    rows, cols = tl.load(row + k, k < M, 0), tl.load(col + k, k < M, 0)
    for a in tl.static_range(R):
        A = tl.load(row_side + a * rank_stride + rows).to(tl.float32)
        for b in tl.static_range(R):
            pair = A * tl.load(col_side + b * rank_stride + cols).to(tl.float32)
            for q in tl.static_range(C):
                g = tl.load(ds + k * C + q, k < M, 0.0)
                tl.store(d_cores + ((at * C + q) * R + a) * R + b, tl.sum(g * pair, 0))
