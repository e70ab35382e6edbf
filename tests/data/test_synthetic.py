"""The entropy of generated text against textbooks, enumeration, and an independent scorer."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest

from umscale.data.synthetic import MarkovFacts, document_nats, documents, floor, tables, zipf
from umscale.errors import UserError

MIXED = MarkovFacts(seed=5, alphabet=9, order=2, branching=3, facts=40, fact_rate=0.15, document=96)
SOURCES = [
    MIXED,
    MarkovFacts(seed=1, alphabet=26, order=1, branching=4, zipf=0.5, facts=300, document=64),
    MarkovFacts(
        seed=2, alphabet=5, order=0, branching=5, facts=7, fact_zipf=2.0, value_symbols=1, document=33
    ),
    MarkovFacts(seed=3, alphabet=4, order=2, branching=2, facts=0, document=50),
]


class Reader:
    """Reads a document a byte at a time and knows the source's tables: probabilities from dictionaries alone."""

    def __init__(self, source: MarkovFacts) -> None:
        known, n = tables(source), source.alphabet
        self.source = source
        self.following = {
            _context(c, n, source.order): {
                chr(97 + int(s)): float(w) for s, w in zip(known.successors[c], known.weights, strict=True)
            }
            for c in range(len(known.successors))
        }
        self.beginnings = {_context(c, n, source.order): float(p) for c, p in enumerate(known.stationary)}
        width = source.key_symbols
        texts = [bytes(row).decode() for row in known.facts]
        self.keys = {t[1 : 1 + width]: float(q) for t, q in zip(texts, known.fact_weights, strict=True)}
        self.values = {t[1 : 1 + width]: t[1 + width :] for t in texts}

    def score(self, text: str) -> tuple[float, float]:
        """Return nats with and without knowledge of the values; infinite if the source cannot write this."""
        s, letters, shown, place = self.source, "", set(), 0
        nats, extra = 0.0, 0.0
        while place < len(text):
            room = s.facts and place >= s.order and len(text) - place >= s.fact_bytes
            if text[place] == "#":
                key = text[place + 1 : place + 1 + s.key_symbols]
                value = text[place + 1 + s.key_symbols : place + s.fact_bytes]
                if not room or self.values.get(key) != value:
                    return math.inf, math.inf
                nats -= math.log(s.fact_rate) + math.log(self.keys[key])
                extra += 0 if key in shown else len(value) * math.log(10)
                shown.add(key)
                place += s.fact_bytes
                continue
            if room:
                nats -= math.log(1 - s.fact_rate)
            if len(letters) >= s.order:
                context = letters[len(letters) - s.order :]
                if text[place] not in self.following[context]:
                    return math.inf, math.inf
                nats -= math.log(self.following[context][text[place]])
            letters += text[place]
            if len(letters) == s.order:
                nats -= math.log(self.beginnings[letters])
            place += 1
        return nats, nats + extra


def _context(number: int, alphabet: int, order: int) -> str:
    return "".join(chr(97 + number // alphabet ** (order - 1 - i) % alphabet) for i in range(order))


@pytest.mark.parametrize("source", SOURCES)
def test_floor_is_the_average_score_of_fresh_documents(source: MarkovFacts) -> None:
    fresh, reader, exact = documents(source, 10**6, 1500), Reader(source), floor(source)
    scores = np.array([reader.score(bytes(row).decode()) for row in fresh])
    np.testing.assert_allclose(np.stack(document_nats(source, fresh), 1), scores, rtol=1e-10)
    for i, expected in enumerate((exact.nats, exact.without_facts_nats)):
        mean, error = scores[:, i].mean(), scores[:, i].std() / math.sqrt(len(scores))
        assert abs(mean / source.document - expected) < 4 * error / source.document
        assert error / source.document < 0.02
    assert (exact.without_facts_nats > exact.nats) == (source.facts > 0)


def _all_documents(source: MarkovFacts) -> Iterator[tuple[str, float, int]]:
    """Yield every document of a source, its probability and its number of different keys, by its definition."""
    reader = Reader(source)

    def grow(text: str, letters: str, keys: frozenset[str], p: float) -> Iterator[tuple[str, float, int]]:
        left = source.document - len(text)
        if left == 0:
            yield text, p, len(keys)
            return
        if len(letters) >= source.order and left >= source.fact_bytes and source.facts:
            for key, weight in reader.keys.items():
                fact = f"#{key}{reader.values[key]}"
                yield from grow(text + fact, letters, keys | {key}, p * source.fact_rate * weight)
            p *= 1 - source.fact_rate
        context = letters[len(letters) - source.order :] if source.order else ""
        for letter, weight in reader.following[context].items():
            yield from grow(text + letter, letters + letter, keys, p * weight)

    for beginning, p in reader.beginnings.items():
        if p > 0:
            yield from grow(beginning, beginning, frozenset(), p)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_floor_is_the_entropy_of_all_documents(order: int) -> None:
    source = MarkovFacts(
        seed=order, alphabet=3, order=order, branching=2, facts=3, fact_rate=0.3, value_symbols=1, document=10
    )
    found = list(_all_documents(source))
    chances = np.array([p for _, p, _ in found])
    assert len({text for text, _, _ in found}) == len(found) > 1000
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    entropy = -(chances * np.log(chances)).sum()
    keys = (chances * [n for _, _, n in found]).sum()
    exact = floor(source)
    assert exact.nats == pytest.approx(entropy / 10, rel=1e-12)
    assert exact.without_facts_nats == pytest.approx((entropy + keys * math.log(10)) / 10, rel=1e-12)


def test_textbook_entropies() -> None:
    letters = MarkovFacts(alphabet=20, order=0, branching=20, zipf=1.3, facts=0)
    p = np.array([k**-1.3 for k in range(1, 21)])
    p /= p.sum()
    assert floor(letters).nats == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
    cycle = MarkovFacts(alphabet=7, order=1, branching=1, facts=0, document=100)
    assert floor(cycle).nats == pytest.approx(math.log(7) / 100, rel=1e-12)
    text = documents(cycle, 0, 1)[0]
    np.testing.assert_array_equal(text[7:], text[:-7])
    assert len(set(text[:7])) == 7
    uniform = MarkovFacts(alphabet=11, order=2, branching=11, zipf=0, facts=0)
    assert floor(uniform).nats == pytest.approx(math.log(11), rel=1e-12)
    assert zipf(4, 0).tolist() == [0.25] * 4


def test_a_chain_of_two_states() -> None:
    """Stationary (b, a) / (a + b) and rate sum pi_i h(p), with what the first letter costs beside it."""
    source = MarkovFacts(seed=4, alphabet=2, order=1, branching=2, zipf=2.0, facts=0, document=40)
    known = tables(source)
    chances = np.zeros((2, 2))
    np.put_along_axis(chances, known.successors, np.tile([0.8, 0.2], (2, 1)), 1)
    a, b = chances[0, 1], chances[1, 0]
    np.testing.assert_allclose(known.stationary, [b / (a + b), a / (a + b)], rtol=1e-12)
    first = -(known.stationary * np.log(known.stationary)).sum()
    rate = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert floor(source).nats == pytest.approx((first + 39 * rate) / 40, rel=1e-12)


@pytest.mark.parametrize("source", SOURCES)
def test_contexts_occur_as_often_as_the_stationary_distribution_says(source: MarkovFacts) -> None:
    known, n, order = tables(source), source.alphabet, source.order
    moves = np.zeros((len(known.successors),) * 2)
    for context, row in enumerate(known.successors):
        for letter, weight in zip(row, known.weights, strict=True):
            moves[context, (context * n + letter) % len(moves)] += weight
    np.testing.assert_allclose(known.stationary @ moves, known.stationary, atol=1e-13)
    texts = [bytes(row).decode() for row in documents(source, 0, 800)]
    letters = ["".join(c for c in text if c.islower()) for text in texts]
    last = [word[len(word) - order :] for word in letters]  # far from the beginning: still stationary
    counts = np.array([last.count(_context(c, n, order)) for c in range(len(moves))])
    expected = known.stationary * len(last)
    assert (counts[expected == 0] == 0).all()
    error = (counts - expected)[expected > 0] ** 2 / expected[expected > 0]
    assert error.sum() < error.size + 6 * math.sqrt(2 * error.size)


def test_bytes_are_a_function_of_the_seed() -> None:
    whole = documents(MIXED, 0, 40)
    np.testing.assert_array_equal(documents(MIXED, 25, 10), whole[25:35])
    other = documents(MarkovFacts(**{**_fields(MIXED), "seed": 6}), 0, 40)
    assert not np.array_equal(other, whole)
    assert not np.array_equal(tables(MIXED).facts, tables(MarkovFacts(facts=40)).facts)
    # Fixed for good: recorded studies name corpora by their hash.
    assert bytes(documents(MarkovFacts(), 0, 1)[0, :32]) == b"gxbeiwyujiefajeer#YPB4096dpgokz#"


def _fields(source: MarkovFacts) -> dict[str, object]:
    return {name: getattr(source, name) for name in source.__slots__}


@pytest.mark.parametrize(
    "wrong",
    [
        {"alphabet": 27},
        {"order": 3},
        {"branching": 9, "alphabet": 8},
        {"facts": 26**4 + 1},
        {"fact_rate": 0.0},
        {"document": 8, "value_symbols": 10},
        {"zipf": -1.0},
    ],
)
def test_impossible_sources(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        MarkovFacts(**wrong)  # type: ignore[arg-type]


def test_values_longer_than_a_document_do_not_matter_without_facts() -> None:
    source = MarkovFacts(seed=5, alphabet=4, order=1, branching=2, facts=0, document=16)
    texts = documents(source, 0, 500)
    wider = dataclasses.replace(source, value_symbols=64)
    for found, wanted in zip(document_nats(wider, texts), document_nats(source, texts), strict=True):
        np.testing.assert_array_equal(found, wanted)
