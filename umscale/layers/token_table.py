"""Tables whose rows are addressed by tokens: gathered by the shared lookup, a bag of one row a head."""

import torch
from torch import Tensor, nn

from umscale_kernels import count_rows, lookup


class TokenTable(nn.Module):
    """The tables of one module, one after another: ``rows [N, w]``, read at ``[B, S, A]`` as ``[B, S, A w]``, fp32.

    Attributes that callers may set: ``usage``, an int64 tensor ``[N]`` that counts the rows read; ``backend``;
    ``row_gradients``, whether gradients are row-sparse.
    """

    offsets: Tensor

    def __init__(self, sizes: list[list[int]], width: int) -> None:
        super().__init__()
        flat = [size for heads in sizes for size in heads]
        self.rows = nn.Parameter(torch.empty(sum(flat), width))
        starts = torch.tensor([0, *flat[:-1]], dtype=torch.int64).cumsum(0)
        self.register_buffer("offsets", starts, persistent=False)  # [A]
        self.usage: Tensor | None = None
        self.backend = "auto"
        self.row_gradients = False

    def forward(self, addresses: Tensor) -> Tensor:
        bags = (addresses + self.offsets).reshape(-1, 1)  # [T A, 1]
        if self.usage is not None:
            self.usage += count_rows(bags, self.usage.numel())
        ones = self.rows.new_ones(bags.shape[0], 1, 1)
        read = lookup(None, ones, bags, None, self.rows, sparse_grad=self.row_gradients, backend=self.backend)
        return read.view(*addresses.shape[:-1], -1)
