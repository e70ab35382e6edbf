"""How large the tables of token-addressed memory are, and what their n-grams are hashed with: whole numbers alone.

What reads them is in ``umscale.layers``; accounting and design need the sizes without a tensor.
"""

from collections.abc import Iterator

from umscale.rng import derive_seed
from umscale.spec import ModelSpec, NgramSpec


def table_params(model: ModelSpec) -> int:
    """Return the parameters of all token-addressed tables of a model: its sparse part that no router chooses."""
    ngram = model.ngram
    if ngram is None:
        return 0
    sizes = table_sizes(ngram, model.ngram_modules, model.vocab_size)
    return ngram.head_width * sum(size for module in sizes for heads in module for size in heads)


def table_sizes(ngram: NgramSpec, n_modules: int, vocab_size: int) -> list[list[list[int]]]:
    """Return the rows of every head's table, ``[module][order - 2][head]``.

    Primes above ``ngram.rows``, each used once over the whole model, so that two heads collide on different n-grams.
    Input embeddings step over sizes within 1% of a multiple of the vocabulary, where a polynomial hash of base |V|
    collides most (arXiv 2601.21204).

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
    if vocab_size == 0:  # not known yet, as in a study file
        return False
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
