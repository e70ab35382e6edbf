"""Per-layer embeddings, as in Gemma 3n: every block has a row for every token, let through by the hidden state.

p_l = (RMS(W_ctx e_t / sqrt(h))_l + sqrt(d_p) E_l[x_t]) / sqrt(2)
x <- x + RMS(W_out (gelu(W_gate x) * p_l)), after the block's FFN
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from umscale.layers.norm import RmsNorm
from umscale.layers.token_table import TokenTable
from umscale.spec import NgramSpec


class PerLayerEmbedding(nn.Module):
    """One block's share: ``x [B, S, h]``, embeddings ``e [B, S, h]`` and tokens ``[B, S]`` to what is added to x."""

    def __init__(self, d_model: int, ngram: NgramSpec, sizes: list[list[int]]) -> None:
        super().__init__()
        width = ngram.head_width
        self.table = TokenTable(sizes, width)
        self.context = nn.Linear(d_model, width, bias=False)
        self.context_norm = RmsNorm(width)
        self.gate = nn.Linear(d_model, width, bias=False)
        self.out = nn.Linear(width, d_model, bias=False)
        self.out_norm = RmsNorm(d_model)

    def forward(self, x: Tensor, embedded: Tensor, tokens: Tensor) -> Tensor:
        width = self.table.rows.shape[1]
        context = self.context_norm(self.context(embedded / math.sqrt(x.shape[-1])))
        row = self.table(tokens.unsqueeze(-1)).to(context.dtype) * math.sqrt(width)
        p = (context + row) / math.sqrt(2)
        return self.out_norm(self.out(F.gelu(self.gate(x)) * p))
