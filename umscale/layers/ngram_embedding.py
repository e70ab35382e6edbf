"""Token-addressed tables at the input: n-gram embedding (arXiv 2601.21204) and over-encoding (arXiv 2501.16975).

    e_t = (E_0[x_t] + sum over n, k of W_{n,k} E_{n,k}[H_{n,k}]) / (tables + 1), amplified by sqrt(h)

The sum is small beside the residual stream of later blocks unless it is amplified, which the source found to matter.
"""

import math

from torch import Tensor, nn

from umscale.layers.token_table import TokenTable
from umscale.spec import NgramSpec


class NgramEmbedding(nn.Module):
    """Tokens' embeddings ``[B, S, h]`` and addresses ``[B, S, orders heads]`` to the decoder's input ``[B, S, h]``."""

    def __init__(self, d_model: int, ngram: NgramSpec, sizes: list[list[int]]) -> None:
        super().__init__()
        self.table = TokenTable(sizes, ngram.head_width)
        # The W_{n,k} of all tables side by side: one product sums them.
        self.project = nn.Linear(ngram.read_width, d_model, bias=False)
        gain = math.sqrt(d_model) if ngram.amplify == "sqrt" else 1.0
        self.scale = gain / (ngram.n_heads + 1)

    def forward(self, embedded: Tensor, addresses: Tensor) -> Tensor:
        return (embedded + self.project(self.table(addresses).to(embedded.dtype))) * self.scale
