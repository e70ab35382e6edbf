"""Where a token's n-grams live: hashed addresses into tables that no router and no key chooses.

    x'_t = canonical[x_t]        n-gram of order n at t: (x'_t, x'_{t-1}, ..., x'_{t-n+1})

    Engram (arXiv 2601.07372, section 2.2)             h_n = XOR over i < n of x'_{t-i} a_i  (odd 64-bit a_i, wrapping)
        address of order n, head k                     h_n mod M_{n,k}, every M_{n,k} a prime of its own
    n-gram embedding (arXiv 2601.21204)                h_n = sum over i < n of x_{t-i} |V|^i, modulo M_{n,k} as it grows
    over-encoding (arXiv 2501.16975)                   the same id, of a table tiled by modulo: head k reads M + 2k rows

An n-gram never reaches across the start of a document, whatever attention does: positions before it, and before the
window, count as the id that begins documents. All arithmetic is int64 and wraps alike on every device.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from umscale.rng import derive_seed
from umscale.spec import NgramSpec


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


def table_sizes(ngram: NgramSpec, n_modules: int, vocab_size: int) -> list[list[list[int]]]:
    """Return the rows of every head's table, ``[module][order - 2][head]``.

    Primes above ``ngram.rows``, each used once over the whole model, so that two heads collide on different n-grams.
    Input embeddings step over sizes within 1% of a multiple of the vocabulary, where a polynomial hash of base |V|
    collides most (arXiv 2601.21204).

    Raises:
        UserError: see ``NgramSpec``.
    """
    if ngram.kind == "per_layer_embedding":
        return [[[vocab_size]] for _ in range(n_modules)]
    if ngram.kind == "over_encoding":
        return [
            [[ngram.rows + 2 * k for k in range(ngram.heads)] for _ in ngram.orders] for _ in range(n_modules)
        ]
    primes = _primes_above(ngram.rows)
    if ngram.kind == "ngram_embedding":
        primes = (p for p in primes if not _near_multiple(p, vocab_size))
    return [[[next(primes) for _ in range(ngram.heads)] for _ in ngram.orders] for _ in range(n_modules)]


def _near_multiple(size: int, vocab_size: int) -> bool:
    nearest = round(size / vocab_size) * vocab_size
    return nearest > 0 and abs(size - nearest) < 0.01 * vocab_size


def _primes_above(least: int) -> Iterator[int]:
    candidate = max(2, least)
    while True:
        if _is_prime(candidate):
            yield candidate
        candidate += 1


def _is_prime(n: int) -> bool:
    """Miller-Rabin with the bases that decide every n below 3.3e24."""
    if n < 2:
        return False
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if any(n % p == 0 for p in bases):
        return n in bases
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def multipliers(seed: int, module: int, order: int) -> list[int]:
    """Return the odd multipliers of one module, as int64: drawn from the run's named generator."""
    draws = [derive_seed(seed, f"ngram/{module}/{i}") for i in range(order)]  # 63 bits each
    return [draw * 2 + 1 - 2**63 for draw in draws]  # odd, over the whole range of int64


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


def expected_distinct(n_ngrams: int, rows: int) -> float:
    """Return how many of ``rows`` a uniform hash of ``n_ngrams`` different n-grams touches."""
    return -rows * math.expm1(n_ngrams * math.log1p(-1 / rows)) if rows > 1 else float(n_ngrams > 0)
