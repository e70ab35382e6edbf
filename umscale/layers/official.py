"""Weights trained by other implementations of UltraMemV2, in this layer's layout.

The released code projects ``[2, r, Dk]`` query channels but reads only slot 0, whose halves are the row and the column
query of both ranks; a rewrite for Ascend devices reads the first block of either slot. The paper (eq. 7) gives every
side and rank a query of its own. Copying the blocks that were read into the places that this layer reads makes it
compute what the weights were trained for.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from umscale.layers.tucker import TuckerMemory

QueryLayout = Literal["paper", "official", "ascend"]


class Permutation(nn.Module):
    """A stored bijection of addresses, as released checkpoints carry; ``table`` is int64 ``[addresses]``."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.long())

    def forward(self, address: Tensor) -> Tensor:
        return self.table[address]


def query_weight(weight: Tensor, rank: int, layout: QueryLayout) -> Tensor:
    """Return a query projection ``[2 r Dk, h]`` with blocks in (side, rank) order.

    Raises ValueError for an unknown layout, a width that is no multiple of 2 r, or ``official`` at a rank other than 2
    (its halves are blocks only there).
    """
    if layout not in ("paper", "official", "ascend"):
        raise ValueError(f"query_layout must be paper, official or ascend, not {layout!r}")
    if weight.shape[0] % (2 * rank):
        raise ValueError(f"query weight {list(weight.shape)} does not hold 2 x {rank} blocks")
    blocks = weight.view(2, rank, -1, weight.shape[1])
    if layout == "paper":
        return weight
    if layout == "official" and rank != 2:
        raise ValueError(f"the official query layout is defined for rank 2, not {rank}")
    row, col = (blocks[0, 0], blocks[0, 1]) if layout == "official" else (blocks[0, 0], blocks[1, 0])
    return torch.stack([*[row] * rank, *[col] * rank]).flatten(0, 1)


@torch.no_grad()
def load_official(
    memory: TuckerMemory,
    *,
    query: Tensor,
    keys: Tensor,
    cores: Tensor,
    query_gain: Tensor,
    key_gain: Tensor,
    query_layout: QueryLayout = "official",
    permutation: Tensor | None = None,
) -> None:
    """Load the retrieval of a released checkpoint into ``memory``, in place.

    Args:
        query: ``[2 r Dk, h]``, blocks as ``query_layout`` says.
        keys: ``[H, 2, n, Dk, r]`` as released code stores them.
        cores: ``[c, H, r, r]``.
        query_gain, key_gain: ``[Dk]`` norm gains.
        permutation: int64 ``[addresses]``; None keeps the layer's own shuffle.

    The released ring starts at the layer's own table: with shared tables ``memory.first_row`` becomes that table's.
    Raises ValueError on sizes that do not fit.
    """
    spec = memory.spec
    wanted = {
        "query": (query, (2 * spec.tucker_rank * spec.d_key, memory.query.in_features)),
        "keys": (keys, (spec.heads, 2, spec.keys_per_side, spec.d_key, spec.tucker_rank)),
        "cores": (cores, (spec.n_cores, spec.heads, spec.tucker_rank, spec.tucker_rank)),
        "query_gain": (query_gain, (spec.d_key,)),
        "key_gain": (key_gain, (spec.d_key,)),
    }
    if permutation is not None:
        wanted["permutation"] = (permutation, (spec.key_expansion**2 * spec.visible_values,))
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
    memory.query.weight.copy_(query_weight(query, spec.tucker_rank, query_layout))
    memory.keys.copy_(keys.permute(0, 1, 4, 2, 3).flatten(1, 2))
    memory.cores.copy_(cores.transpose(0, 1))
    memory.query_norm.weight.copy_(query_gain)
    memory.key_norm.weight.copy_(key_gain)
    memory.first_row = memory.index * spec.n_values
    if permutation is not None:
        memory.shuffle = Permutation(permutation)
    memory.refresh()
