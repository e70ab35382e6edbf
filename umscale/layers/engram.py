"""Engram (arXiv 2601.07372, section 2): hashed n-grams of the tokens, let through by the hidden state.

    e = rows of all orders and heads          k = W_K e,  v = W_V e           a = <RMS(x), RMS(k)> / sqrt(h)
    v~ = gate(a) v                            y = v~ + silu(conv(RMS(v~)))    x <- x + y, before the block's attention

``gate`` is sigmoid(sign(a) sqrt|a|) in the released code and sigmoid(a) in the paper. The convolution is depthwise,
causal, dilated by the longest order, and starts at zero; like the n-grams it does not reach across a document's start.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umscale.layers.norm import RmsNorm
from umscale.layers.precision import full_precision
from umscale.layers.token_table import TokenTable
from umscale.spec import NgramSpec

Gate = str
_TINY = 1e-6
"""Under the root of the signed gate, whose slope at zero is infinite otherwise (the released code's value)."""


def gate(a: Tensor, kind: Gate) -> Tensor:
    """Return how much of a value passes for the agreement ``a`` of hidden state and key, any shape."""
    if kind == "none":
        return torch.ones_like(a)
    return torch.sigmoid(a.sign() * a.abs().clamp_min(_TINY).sqrt() if kind == "signed_sqrt" else a)


class Engram(nn.Module):
    """One module, ``x [B, S, h]`` and addresses ``[B, S, orders heads]`` to what is added to x."""

    def __init__(self, d_model: int, ngram: NgramSpec, sizes: list[list[int]]) -> None:
        super().__init__()
        self.spec = ngram
        self.table = TokenTable(sizes, ngram.head_width)
        self.key = nn.Linear(ngram.read_width, d_model, bias=False) if ngram.gate != "none" else None
        self.value = nn.Linear(ngram.read_width, d_model, bias=False)
        self.query_norm = RmsNorm(d_model) if ngram.gate != "none" else None
        self.key_norm = RmsNorm(d_model) if ngram.gate != "none" else None
        self.conv_norm = RmsNorm(d_model) if ngram.conv_kernel else None
        self.conv = nn.Parameter(torch.zeros(ngram.conv_kernel, d_model)) if ngram.conv_kernel else None

    def forward(self, x: Tensor, addresses: Tensor, document: Tensor) -> Tensor:
        """``document [B, S]`` numbers the document that each token belongs to, within its window."""
        e = self.table(addresses).to(x.dtype)  # [B, S, W]
        passed = self.value(e)
        if self.key is not None and self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(full_precision(x)), self.key_norm(full_precision(self.key(e)))
            agreement = (query * key).sum(-1, keepdim=True) / math.sqrt(x.shape[-1])
            passed = passed * gate(agreement, self.spec.gate).to(passed.dtype)
        if self.conv is None or self.conv_norm is None:
            return passed
        mixed = causal_conv(self.conv_norm(full_precision(passed)), self.conv, self.spec.max_order, document)
        return passed + F.silu(mixed).to(passed.dtype)


def causal_conv(x: Tensor, taps: Tensor, dilation: int, document: Tensor) -> Tensor:
    """Depthwise causal convolution of ``x [B, S, h]`` with ``taps [K, h]``; tap j reads ``j dilation`` tokens back.

    What lies before the window, or in another document by ``document [B, S]``, counts as zero.
    """
    out = x * taps[0]
    for j in range(1, min(taps.shape[0], -(-x.shape[1] // dilation))):
        back = j * dilation
        same = (document[:, back:] == document[:, :-back]).unsqueeze(-1)
        out = out + F.pad(x[:, :-back] * same.to(x.dtype), (0, 0, back, 0)) * taps[j]
    return out
