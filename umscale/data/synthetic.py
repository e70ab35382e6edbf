"""A text source whose entropy is known exactly: Zipfian Markov text with key-value facts in between.

A document is ``document`` bytes. Its text is a stationary Markov chain over lower-case letters: every context has
``branching`` successors, drawn from the seed, whose probabilities fall off with their rank as rank^-zipf. Wherever the
text could go on and there is room, a fact begins with probability ``fact_rate`` instead: a ``#``, a key in capitals
(Zipf-distributed over ``facts`` keys) and the key's value in digits, the same whenever the key comes up. Then the text
goes on as if the fact were not there, so the chain stays stationary and nothing is hidden from a reader.

Expected nats of a document, with u_t the probability that text or a fact begins at byte t:

    H(pi) + (E[letters] - order) h + sum_t u_t h_b(fact_rate) + E[facts] H(keys)

where pi is the stationary distribution over contexts, h the chain's entropy rate and h_b the binary entropy. What a
document's beginning (no context yet) and end (no room for a fact) do to it is part of the sum, not neglected. A reader
who knows everything but the values also pays ``value_symbols`` ln 10 the first time that a key comes up in a document.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from umscale.data.draws import Draws
from umscale.errors import UserError

SourceName = Literal["markov-facts"]
MARKER = ord("#")
LETTERS, CAPITALS, DIGITS = ord("a"), ord("A"), ord("0")
N_LETTERS = N_CAPITALS = 26
N_DIGITS = 10
MOST_FACTS = N_CAPITALS**4
BATCH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkovFacts:
    """Parameters of the source; its tables follow from them (``tables``)."""

    kind: SourceName = "markov-facts"
    seed: int = 0
    alphabet: int = 26
    """Letters of the text."""
    order: int = 2
    """Letters that the next one depends on; 0 draws them independently."""
    branching: int = 8
    """Letters that can follow a context."""
    zipf: float = 1.0
    """Exponent of the successors' probabilities."""
    facts: int = 4096
    """Keys with a value; 0 leaves facts out."""
    fact_rate: float = 0.05
    """Probability that a fact begins where the text could go on."""
    fact_zipf: float = 1.0
    """Exponent of the keys' probabilities."""
    value_symbols: int = 4
    """Digits of a value."""
    document: int = 256
    """Bytes of a document."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("seed", 0, 2**63 - 1),
            ("alphabet", 2, N_LETTERS),
            ("order", 0, 2),
            ("branching", 1, self.alphabet),
            ("zipf", 0, 20),
            ("facts", 0, MOST_FACTS),
            ("fact_zipf", 0, 20),
            ("value_symbols", 1, 64),
            ("document", 8, 1 << 13),  # the floor takes memory with its square
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"{name} must lie between {least} and {most}, not {value}")
        if not 0 < self.fact_rate < 1:
            raise UserError(
                f"fact_rate must lie strictly between 0 and 1, not {self.fact_rate:g}; "
                "facts = 0 leaves facts out at any rate"
            )
        if self.facts and self.document < self.order + self.fact_bytes:
            raise UserError(
                f"document = {self.document} has no room for a fact of {self.fact_bytes} bytes; "
                "raise document or lower value_symbols"
            )

    @property
    def key_symbols(self) -> int:
        """Capitals of a key: two, or as many as ``facts`` different keys need."""
        return next(n for n in range(2, 5) if N_CAPITALS**n >= self.facts)

    @property
    def fact_bytes(self) -> int:
        """Marker, key and value."""
        return 1 + self.key_symbols + self.value_symbols

    @property
    def rate(self) -> float:
        """Probability of a fact where there is room for one."""
        return self.fact_rate if self.facts else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What a seed draws. C contexts of ``order`` letters, B successors each, K keys."""

    successors: np.ndarray
    """int64 [C, B]: letters, the most probable first."""
    weights: np.ndarray
    """float64 [B]: probabilities of the successors, the same for every context."""
    stationary: np.ndarray
    """float64 [C]: how often each context occurs."""
    facts: np.ndarray
    """uint8 [K, fact_bytes]: each fact as it is written, the most frequent first."""
    fact_weights: np.ndarray
    """float64 [K]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """Exact expectations, nats per byte of a document."""

    nats: float
    """For a reader who knows the source: no model can do better on average."""
    without_facts_nats: float
    """For one who knows all but the facts' values, and remembers those that the document has shown."""


def zipf(n: int, exponent: float) -> np.ndarray:
    """Return float64 ``[n]``: probabilities proportional to rank^-exponent."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


@functools.lru_cache(maxsize=4)
def tables(source: MarkovFacts) -> Tables:
    """Draw the tables of a source."""
    n, n_contexts = source.alphabet, source.alphabet**source.order
    successors = Draws(source.seed, np.arange(n_contexts)).choose(n, source.branching, "synthetic/successors")
    if source.order:
        # One fixed successor of every letter, on one cycle through all letters, is among the successors of every
        # context: so there is a single class of contexts that is never left, and one stationary distribution.
        once = Draws(source.seed, np.zeros(1, np.int64))
        cycle, follows = once.choose(n, n, "synthetic/cycle")[0], np.empty(n, np.int64)
        follows[cycle] = np.roll(cycle, -1)
        fixed = follows[np.arange(n_contexts) % n]
        rank = Draws(source.seed, np.arange(n_contexts)).below(source.branching, "synthetic/rank")
        missing = np.flatnonzero((successors != fixed[:, None]).all(1))
        successors[missing, rank[missing]] = fixed[missing]
    weights = zipf(source.branching, source.zipf)
    return Tables(
        successors=successors,
        weights=weights,
        stationary=_stationary(successors, weights, n),
        facts=_facts(source),
        fact_weights=zipf(source.facts, source.fact_zipf),
    )


def _facts(source: MarkovFacts) -> np.ndarray:
    count, width = source.facts, source.key_symbols
    draws = Draws(source.seed, np.zeros(1, np.int64))
    codes = draws.choose(N_CAPITALS**width, count, "synthetic/keys")[0] if count else np.zeros(0, np.int64)
    places = N_CAPITALS ** np.arange(width - 1, -1, -1)
    values = Draws(source.seed, np.arange(count)).below(N_DIGITS, "synthetic/values", source.value_symbols)
    parts = (
        np.full((count, 1), MARKER),
        CAPITALS + codes[:, None] // places % N_CAPITALS,
        DIGITS + values,
    )
    return np.concatenate(parts, 1).astype(np.uint8)


def _stationary(successors: np.ndarray, weights: np.ndarray, alphabet: int) -> np.ndarray:
    """Solve pi P = pi with sum(pi) = 1, in float64; contexts that die out get exactly 0 up to rounding."""
    n_contexts = len(successors)
    contexts = np.arange(n_contexts)[:, None]
    following = (contexts * alphabet + successors) % n_contexts
    equations = -np.eye(n_contexts)
    np.add.at(equations, (following, contexts), weights)  # transposed: column = from, row = to
    equations[-1] = 1.0  # one equation follows from the others; in its place, the sum
    right = np.zeros(n_contexts)
    right[-1] = 1.0
    found = np.maximum(np.linalg.solve(equations, right), 0.0)
    return found / found.sum()


# ---------------------------------------------------------------------------------------------------------
# Entropy


def floor(source: MarkovFacts) -> Floor:
    """Return the exact expected loss of two readers, see the module."""
    known, size, rate = tables(source), source.document, source.rate
    begins, counts = _positions(source)
    decisions = begins[: max(0, size - source.fact_bytes + 1)][source.order :].sum()
    n_facts = float(counts @ np.arange(len(counts)))
    n_letters = size - source.fact_bytes * n_facts
    total = (
        _entropy(known.stationary)
        + (n_letters - source.order) * _entropy(known.weights)
        + decisions * _entropy(np.array([rate, 1 - rate]))
        + n_facts * _entropy(known.fact_weights)
    )
    unseen = np.polynomial.polynomial.polyval(1 - known.fact_weights, counts)  # E[(1 - q)^facts], [K]
    paid = source.value_symbols * math.log(N_DIGITS) * float((1 - unseen).sum())
    return Floor(nats=float(total / size), without_facts_nats=float((total + paid) / size))


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _positions(source: MarkovFacts) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability that a letter or fact begins at each byte [L], and of each number of facts [F]."""
    size, width, rate = source.document, source.fact_bytes, source.rate
    most = size // width + 1
    reach = np.zeros((size + width + 1, most + 1))  # [byte, facts so far]
    reach[0, 0] = 1.0
    for t in range(size):
        chance = rate if t >= source.order and size - t >= width else 0.0
        reach[t + 1] += (1 - chance) * reach[t]
        reach[t + width, 1:] += chance * reach[t, :-1]
    return reach[:size].sum(1), reach[size]


# ---------------------------------------------------------------------------------------------------------
# Documents


def documents(source: MarkovFacts, first: int, count: int) -> np.ndarray:
    """Return documents ``first`` to ``first + count`` of the source's endless sequence, uint8 ``[count, document]``."""
    known, size, width, order = tables(source), source.document, source.fact_bytes, source.order
    draws = Draws(source.seed, np.arange(first, first + count))
    starts = np.zeros((count, size), bool)
    inside = np.zeros((count, size), bool)
    if source.facts:
        wanted = draws.uniform("synthetic/starts", size) < source.fact_rate
        free = np.full(count, order)  # the first byte that is not part of a fact
        for t in range(order, size - width + 1):
            starts[:, t] = wanted[:, t] & (free <= t)
            free[starts[:, t]] = t + width
        for i in range(width):
            inside[:, i:] |= starts[:, : size - i]
    out = np.empty((count, size), np.uint8)
    letters = _letters(source, known, draws)
    rank = np.cumsum(~inside, 1) - 1
    rows, columns = np.nonzero(~inside)
    out[rows, columns] = LETTERS + letters[rows, rank[rows, columns]]
    rows, columns = np.nonzero(starts)
    if len(rows):
        chosen = _sample(known.fact_weights, draws.uniform("synthetic/facts", size)[rows, columns])
        out[rows[:, None], columns[:, None] + np.arange(width)] = known.facts[chosen]
    return out


def _letters(source: MarkovFacts, known: Tables, draws: Draws) -> np.ndarray:
    """Return a stationary chain of letters for every row, int64 ``[n, document]``."""
    n, size, order = source.alphabet, source.document, source.order
    context = _sample(known.stationary, draws.uniform("synthetic/context"))
    ranks = _sample(known.weights, draws.uniform("synthetic/letters", size))
    out = np.empty((len(context), size), np.int64)
    for j in range(size):
        if j < order:
            out[:, j] = context // n ** (order - 1 - j) % n
        else:
            out[:, j] = known.successors[context, ranks[:, j]]
            context = (context * n + out[:, j]) % len(known.successors)
    return out


def _sample(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return int64 indices drawn with probabilities ``weights`` by inversion."""
    ends = np.cumsum(weights)
    found = np.searchsorted(ends, uniform * ends[-1], side="right")
    return np.minimum(found, int(np.flatnonzero(weights)[-1]))


def document_batches(source: MarkovFacts, count: int) -> Iterator[np.ndarray]:
    """Yield the first ``count`` documents, a megabyte or so at a time."""
    size = max(1, BATCH_BYTES // source.document)
    for first in range(0, count, size):
        yield documents(source, first, min(size, count - first))


# ---------------------------------------------------------------------------------------------------------
# Scores


def document_nats(source: MarkovFacts, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact nats of each document for both readers of ``Floor``, float64 ``[n]`` each.

    Their means over many documents approach ``floor(source)`` times ``document``; over the validation documents of a
    corpus they are what the source itself would score there.

    Args:
        texts: documents of this source, uint8 ``[n, document]``.
    """
    known, size, width, order = tables(source), source.document, source.fact_bytes, source.order
    starts = texts == MARKER
    inside = np.zeros(texts.shape, bool)
    for i in range(width if source.facts else 0):
        inside[:, i:] |= starts[:, : size - i]
    # Letters to the front, in order: [n, document], those of a document's tail are not counted.
    front = np.argsort(inside, axis=1, kind="stable")
    letters = np.take_along_axis(texts, front, 1).astype(np.int64) - LETTERS
    counted = np.arange(size) < (~inside).sum(1)[:, None]
    letters[~counted] = 0
    n_contexts = len(known.successors)
    context = np.zeros(len(texts), np.int64)
    chances = np.zeros((n_contexts, source.alphabet))
    np.put_along_axis(chances, known.successors, np.broadcast_to(known.weights, known.successors.shape), 1)
    nats = np.zeros(len(texts))
    with np.errstate(divide="ignore"):
        cost, first_cost = -np.log(chances), -np.log(known.stationary)
    for j in range(size):
        if j >= order:
            nats += np.where(counted[:, j], cost[context, letters[:, j]], 0.0)
        context = (context * source.alphabet + letters[:, j]) % n_contexts
        if j == order - 1:
            nats += first_cost[context]
    if not source.facts:
        return nats, nats.copy()
    begins = ~inside | starts
    begins[:, :order] = begins[:, size - width + 1 :] = False
    n_facts = starts.sum(1)
    nats -= n_facts * math.log(source.fact_rate) + (begins.sum(1) - n_facts) * math.log1p(-source.fact_rate)
    rows, columns = np.nonzero(starts)
    codes = _codes(texts[rows[:, None], columns[:, None] + 1 + np.arange(source.key_symbols)])
    by_code = np.argsort(known_codes := _codes(known.facts[:, 1 : 1 + source.key_symbols]))
    facts = by_code[np.searchsorted(known_codes, codes, sorter=by_code)]
    np.subtract.at(nats, rows, np.log(known.fact_weights[facts]))
    distinct = np.unique(rows * source.facts + facts) // source.facts
    shown = np.bincount(distinct, minlength=len(texts))
    return nats, nats + shown * source.value_symbols * math.log(N_DIGITS)


def _codes(keys: np.ndarray) -> np.ndarray:
    """Return keys, uint8 ``[n, key_symbols]``, as numbers."""
    places = N_CAPITALS ** np.arange(keys.shape[1] - 1, -1, -1)
    return (keys.astype(np.int64) - CAPITALS) @ places
