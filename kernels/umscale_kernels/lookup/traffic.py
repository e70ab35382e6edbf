"""Bytes that `lookup` moves to and from GPU memory: what its time is to be compared with, at about 1 FLOP a byte.

Counted: every table row where a kernel of `triton.py` gathers it, every gradient where it is written, and each
[T, D] and [T, m] array once per kernel. Rows gathered again soon after may come from the cache, so on tables that
fit into it the forward can beat this count; arrays of T rows are taken to stay in the cache while they are used.
"""

from typing import NamedTuple


class LookupTraffic(NamedTuple):
    """Bytes read and written by each pass."""

    forward: int
    backward_sorted: int
    backward_atomic: int


def lookup_traffic_bytes(
    tokens: int,
    top_m: int,
    n_rows: int,
    distinct_rows: int,
    d_pre_value: int,
    d_value: int,
    *,
    n_cores: int = 1,
    table_bytes: int = 2,
    index_bytes: int = 8,
    sparse_grad: bool = False,
) -> LookupTraffic:
    """Traffic of `tokens * top_m` lookups that read `distinct_rows` of `n_rows` rows; both tables get gradients.

    `table_bytes` an element of the tables read, `index_bytes` a row id; everything else is 4 bytes. `sparse_grad`
    makes the sorted backward write `distinct_rows` gradient rows instead of `n_rows`. Raises ValueError when
    `distinct_rows` cannot be.
    """
    lookups, width = tokens * top_m, d_pre_value + d_value
    if not 0 <= distinct_rows <= min(lookups, n_rows):
        raise ValueError(f"{lookups} lookups in {n_rows} rows cannot read {distinct_rows} distinct ones")
    scores, z = 4 * n_cores * lookups, 4 * lookups if d_pre_value else 0
    ids, dp = index_bytes * lookups, 4 * tokens * d_pre_value
    by_token = 4 * tokens * width  # p and o, or p and do
    gathered = lookups * width * table_bytes
    forward = gathered + by_token + ids + scores + z

    gradient_rows = distinct_rows if sparse_grad else n_rows
    if not sparse_grad and lookups < n_rows:  # zeros first, then the rows read
        gradient_rows += distinct_rows
    sort = (
        ids + 4 * lookups + 4 * 2 * (4 + 8) * lookups
    )  # 4 radix passes over 32-bit keys and their 64-bit places
    row_pass = (
        distinct_rows * d_value * table_bytes
        + 4 * gradient_rows * width
        + by_token
        + 8 * lookups  # places
        + 2 * (scores + z)  # s and ds, z and dz
    )
    dp_pass = lookups * d_pre_value * table_bytes + ids + z + dp if d_pre_value else 0

    add = 2 * 4 * lookups * width  # an atomic add reads and writes
    zeros = 4 * n_rows * width
    backward_atomic = gathered + add + zeros + by_token + dp + ids + 2 * scores + z
    return LookupTraffic(forward, sort + row_pass + dp_pass, backward_atomic)
