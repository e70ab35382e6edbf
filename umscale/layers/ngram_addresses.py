"""Where a token's n-grams live: hashed addresses into tables that no router and no key chooses.

    x'_t = canonical[x_t]        n-gram of order n at t: (x'_t, x'_{t-1}, ..., x'_{t-n+1})

    Engram (arXiv 2601.07372, section 2.2)             h_n = XOR over i < n of x'_{t-i} a_i  (odd 64-bit a_i, wrapping)
        address of order n, head k                     h_n mod M_{n,k}, every M_{n,k} a prime of its own
    n-gram embedding (arXiv 2601.21204)                h_n = sum over i < n of x_{t-i} |V|^i, modulo M_{n,k} as it grows
    over-encoding (arXiv 2501.16975)                   the same id, of a table tiled by modulo: head k reads M + 2k rows

An n-gram never reaches across the start of a document, whatever attention does: positions before it, and before the
window, count as the id that begins documents. All arithmetic is int64 and wraps alike on every device.
"""

import torch
from torch import Tensor


def history(tokens: Tensor, start: int, order: int) -> Tensor:
    """Return the tokens behind each token, int64 ``[order, B, S]``: entry i at t is token t - i of the same document.

    Args:
        tokens: int64 ``[B, S]``.
        start: the id that begins a document; it also stands for what lies before a document or the window.
        order: tokens of the longest n-gram.
    """
    steps, same = [tokens], torch.ones_like(tokens, dtype=torch.bool)
    for _ in range(order - 1):
        # Token t - i is another document's when any of t - i + 1 ... t begins one.
        same = same & (steps[-1] != start)
        shifted = torch.nn.functional.pad(steps[-1][:, :-1], (1, 0), value=start)
        steps.append(torch.where(same, shifted, torch.full_like(shifted, start)))
    return torch.stack(steps)


def hashed_addresses(past: Tensor, factors: list[int], sizes: list[list[int]]) -> Tensor:
    """Return Engram's addresses, int64 ``[B, S, orders heads]``, each within its own head's table.

    Args:
        past: canonical ids ``[N, B, S]`` of ``history``.
        factors: N odd int64 multipliers.
        sizes: rows of each table, ``[order - 2][head]``.
    """
    mixed, out = past[0] * factors[0], []
    for n, heads in enumerate(sizes, start=1):
        mixed = mixed ^ (past[n] * factors[n])
        # Torch's remainder has the sign of the divisor, so a negative hash needs no care.
        out += [mixed % size for size in heads]
    return torch.stack(out, dim=-1)


def rolling_addresses(past: Tensor, vocab_size: int, sizes: list[list[int]]) -> Tensor:
    """Return addresses by the polynomial hash of base ``vocab_size``, int64 ``[B, S, orders heads]``.

    Reduced modulo the table at every term (Horner's rule), so that nothing overflows: the address is that of the exact
    integer id, whatever the order.
    """
    out = []
    for n, heads in enumerate(sizes, start=2):
        for size in heads:
            address = torch.zeros_like(past[0])
            for i in reversed(range(n)):
                address = (address * vocab_size + past[i]) % size
            out.append(address)
    return torch.stack(out, dim=-1)
