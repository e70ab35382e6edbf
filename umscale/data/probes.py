"""Probes: generated tasks with a known answer, chance level and ceiling, in bytes.

A probe is ``seq_len`` bytes after an end-of-text token: a capital that names the task, full stops as far as the rest
leaves room, then what is to be read and asked. Names are capitals, values are drawn uniformly from the 16 letters
``a`` to ``p``, so an answer symbol is worth 4 bits and blind guessing hits 1/16. Answers of a task are at the same
places in all its sequences. What they look like at 64 bytes (answers in brackets):

    recall       Lmpoc…jkd|fae…bnk?mpoc=[…jkd]           a passage, filler, its beginning; the rest of it is asked
    multi_round  M..JQ:c;XA:p;XA?[p];JQ?[c];JQ:a;JQ?[a];    facts and questions in rounds; later rounds overwrite
    in_context   C..ABD>gge;BBE>gga;…EAB>[agg];            words and their images, letter by letter, under a random map
    needle       Nhgkd#QX=bmho;pal…?QX=[bmho]             one fact in random text
    key_value    K...XWab;QJpc;…?QJ[pc]                    pairs, one asked
    multi_hop    H..AB>XY;XY>QQ;QQ>.k;…?AB>[k];            chains in random order, entered 3 or 2 steps from the end
    facts        F..QWXJA=[bnkp];AXUEF=[mpoa];…           facts of a fixed table, each once: nothing to read them from

Every sequence is a pure function of (seed, split, task, number). ``facts`` alone has something in common between
sequences: the table, which follows from the seed and is learned in training or not at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from umscale.data.batches import permute
from umscale.data.draws import Draws
from umscale.data.tokenizing import BYTES_EOT
from umscale.errors import UserError
from umscale.rng import derive_seed
from umscale.spec import PROBE_LEAST_BYTES, Probe

SplitName = Literal["train", "validation"]

N_VALUES = 16
VALUES, CAPITALS, N_CAPITALS = ord("a"), ord("A"), 26
N_NAMES = N_CAPITALS**2
"""Names of two capitals."""
CUE, NEEDLE_SYMBOLS, PAIR_SYMBOLS, WORD, ROUNDS, HOPS = 4, 4, 2, 3, 3, 3
FACT_NAME, FACT_SYMBOLS = 5, 4
FACT_BITS = 4 * FACT_SYMBOLS
"""log2 of the choices for a fact's attribute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """Sequences of one task. n of them, A answers of L symbols each."""

    windows: np.ndarray
    """int64 [n, seq_len + 1]; inputs are all but the last token, targets all but the first."""
    answers: np.ndarray
    """int64 [A, L]: which targets are answer symbols, the same in every sequence."""

    @property
    def mask(self) -> np.ndarray:
        """bool [seq_len]: whether a target is an answer symbol."""
        mask = np.zeros(self.windows.shape[1] - 1, bool)
        mask[self.answers] = True
        return mask


@dataclass(frozen=True, slots=True)
class FactTable:
    """The facts that a run is to memorise: a different name of five capitals each, and its attribute."""

    seed: int
    statements: np.ndarray
    """uint8 [N, name + 1 + attribute + 1], as in ``QWXJA=bnkp;``."""

    def __len__(self) -> int:
        return len(self.statements)

    def per_sequence(self, seq_len: int) -> int:
        """Facts that a sequence states."""
        return min(len(self), (seq_len - 1) // self.statements.shape[1])

    def numbers(self, split: SplitName, index: np.ndarray, seq_len: int) -> np.ndarray:
        """Return which facts the sequences ``index`` (int64 ``[n]``) state, int64 ``[n, per_sequence]``.

        An epoch states every fact once, in an order of its own, but for the few that do not fill a sequence.
        """
        each = self.per_sequence(seq_len)
        epochs, places = np.divmod(index, len(self) // each)
        found = np.empty((len(index), each), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = derive_seed(self.seed, f"probes/facts/{split}/{epoch}")
            found[here] = permute(places[here, None] * each + np.arange(each), len(self), key)
        return found


def fact_table(seed: int, count: int) -> FactTable:
    """Return the ``count`` facts of a seed; those of a smaller count are the first of them.

    Args:
        count: up to 26^5; 11 bytes of memory a fact.
    """
    codes = permute(np.arange(count), N_CAPITALS**FACT_NAME, derive_seed(seed, "probes/facts/names"))
    values = Draws(seed, np.arange(count)).below(N_VALUES, "probes/facts/values", FACT_SYMBOLS)
    return FactTable(seed, _lines(_name(codes, FACT_NAME), "=", VALUES + values, ";"))


def probes(
    task: Probe, seed: int, split: SplitName, index: np.ndarray, seq_len: int, facts: FactTable | None = None
) -> Probes:
    """Return sequences number ``index`` (int64 ``[n]``) of a task.

    Args:
        facts: the table that the task ``facts`` is about.

    Raises:
        UserError: ``seq_len`` is too short for probes.
    """
    if seq_len < PROBE_LEAST_BYTES:
        raise UserError(f"data.seq_len = {seq_len} is too short for probes, which need {PROBE_LEAST_BYTES}")
    if task == "facts":
        assert facts is not None
        body, answers = _facts(facts, split, index, seq_len)
    else:
        body, answers = TASKS[task](Draws(derive_seed(seed, f"probes/{task}/{split}"), index), seq_len - 1)
    windows = np.full((len(index), seq_len + 1), ord("."), np.int64)
    windows[:, 0], windows[:, 1] = BYTES_EOT, ord(TAGS[task])
    start = seq_len + 1 - body.shape[1]
    windows[:, start:] = body
    return Probes(windows=windows, answers=answers + start - 1)


# ---------------------------------------------------------------------------------------------------------
# The tasks. Each takes the draws of n sequences and the bytes there are, and returns the sequences' text, uint8
# [n, at most that many], and the places of the answers in it, int64 [A, L].

Made = tuple[np.ndarray, np.ndarray]


def recall(draws: Draws, room: int) -> Made:
    """Make passages of a quarter of the room, seen once: given the beginning, continue to the end."""
    size = max(CUE + 1, room // 4)
    text = VALUES + draws.below(N_VALUES, "text", room - size - 3)
    passage, filler = text[:, :size], text[:, size:]
    body = _lines(passage, "|", filler, "?", passage[:, :CUE], "=", passage[:, CUE:])
    return body, np.arange(room - size + CUE, room)[None]


def multi_round(draws: Draws, room: int) -> Made:
    """Make rounds of facts and questions; a question wants the latest value of a name."""
    statement, question = 5, 5
    each = min(64, room // (ROUNDS * (statement + question)))
    rounds = room // (each * (statement + question))
    n_names = 2 * each
    names = draws.choose(N_NAMES, n_names, "names")  # [n, names]
    stated = draws.choose(n_names, each, "stated", rounds)  # [n, rounds, each], different within a round
    values = draws.below(N_VALUES, "values", rounds, each)
    last = np.full((len(names), n_names), -1)
    order = draws.choose(n_names, n_names, "asked", rounds)
    rows = np.arange(len(names))[:, None]
    parts = []
    for r in range(rounds):
        last[rows, stated[:, r]] = values[:, r]
        # Names in random order, those already stated first: a question each.
        known = np.take_along_axis(last, order[:, r], 1) >= 0
        first = np.argsort(~known, axis=1, kind="stable")[:, :each]
        asked = np.take_along_axis(order[:, r], first, 1)
        facts = _lines(_name(names[rows, stated[:, r]]), ":", VALUES + values[:, r, :, None], ";")
        questions = _lines(_name(names[rows, asked]), "?", VALUES + last[rows, asked][..., None], ";")
        parts += [facts.reshape(len(names), each * statement), questions.reshape(len(names), each * question)]
    starts = (np.arange(rounds)[:, None] * 2 + 1) * each * statement + np.arange(each) * question
    return np.concatenate(parts, 1), starts.reshape(-1, 1) + 3


def in_context(draws: Draws, room: int) -> Made:
    """Make words and their images under a random map from letters to values; the last quarter is asked.

    Every letter has been in an earlier word, most words asked have not.
    """
    width = 2 * WORD + 2
    lines = room // width
    asked = max(1, lines // 4)
    shown = WORD * (lines - asked)
    n_letters = min(N_CAPITALS, shown // 2)
    letters = draws.choose(N_CAPITALS, n_letters, "letters")
    image = draws.below(N_VALUES, "image", n_letters)
    # Every letter once among those shown, at a random place; all others are drawn freely.
    places = draws.choose(shown, n_letters, "places")
    chosen = draws.below(n_letters, "words", lines * WORD)
    np.put_along_axis(chosen, places, np.broadcast_to(np.arange(n_letters), places.shape), 1)
    words, images = (np.take_along_axis(table, chosen, 1) for table in (letters, image))
    shape = (len(words), lines, WORD)
    body = _lines(CAPITALS + words.reshape(shape), ">", VALUES + images.reshape(shape), ";")
    starts = np.arange(lines - asked, lines) * width + WORD + 1
    return body.reshape(len(words), lines * width), starts[:, None] + np.arange(WORD)


def needle(draws: Draws, room: int) -> Made:
    """Make random text with one fact at a random place; the fact is asked at the end."""
    name = _name(draws.below(N_NAMES, "name"))
    value = VALUES + draws.below(N_VALUES, "value", NEEDLE_SYMBOLS)
    fact, question = _lines("#", name, "=", value, ";"), _lines("?", name, "=", value)
    size = room - fact.shape[1] - question.shape[1]
    text = VALUES + draws.below(N_VALUES, "text", size)
    place = draws.below(size + 1, "place")
    # The order that puts the fact's bytes before the text's byte number ``place``.
    after = np.arange(size) >= place[:, None]
    source = np.concatenate([text, fact], 1)
    rank = np.concatenate([2 * after, np.ones(fact.shape)], 1)
    hidden = np.take_along_axis(source, np.argsort(rank, axis=1, kind="stable"), 1)
    return _lines(hidden, question), np.arange(room - NEEDLE_SYMBOLS, room)[None]


def key_value(draws: Draws, room: int) -> Made:
    """Make pairs with different keys, one of which is asked."""
    width = 3 + PAIR_SYMBOLS
    count = min(N_NAMES, room // width - 1)
    names = _name(draws.choose(N_NAMES, count, "names"))
    values = VALUES + draws.below(N_VALUES, "values", count, PAIR_SYMBOLS)
    pairs = _lines(names, values, ";").reshape(-1, count * width)
    rows, asked = np.arange(len(names)), draws.below(count, "asked")
    body = _lines(pairs, "?", names[rows, asked], values[rows, asked])
    return body, np.arange(body.shape[1] - PAIR_SYMBOLS, body.shape[1])[None]


def multi_hop(draws: Draws, room: int) -> Made:
    """Make chains of three links that end in a value, all links in random order; each chain is asked once.

    A question begins at a chain's first or second name, so that its answer takes three or two look-ups.
    """
    width = 6
    count = min(N_NAMES // HOPS, room // (width * (HOPS + 1)))
    codes = draws.choose(N_NAMES, count * HOPS, "names").reshape(-1, count, HOPS)
    names = _name(codes)  # [n, count, hops, 2]
    values = VALUES + draws.below(N_VALUES, "values", count)
    n = len(names)
    ends = np.stack([np.full_like(values, ord(".")), values], -1)[:, :, None]
    links = _lines(names, ">", np.concatenate([names[:, :, 1:], ends], 2), ";")
    links = links.reshape(n, count * HOPS, width)
    order = draws.choose(count * HOPS, count * HOPS, "order")
    rows = np.arange(n)[:, None]
    chain, entry = draws.choose(count, count, "asked"), draws.below(2, "entry", count)
    questions = _lines("?", names[rows, chain, entry], ">", values[rows, chain][..., None], ";")
    parts = links[rows, order].reshape(n, -1), questions.reshape(n, -1)
    starts = count * HOPS * width + np.arange(count) * width + 4
    return np.concatenate(parts, 1), starts[:, None]


def _facts(table: FactTable, split: SplitName, index: np.ndarray, seq_len: int) -> Made:
    width = table.statements.shape[1]
    numbers = table.numbers(split, index, seq_len)
    body = table.statements[numbers].reshape(len(index), -1)
    starts = np.arange(numbers.shape[1]) * width + FACT_NAME + 1
    return body, starts[:, None] + np.arange(FACT_SYMBOLS)


TASKS: Mapping[str, Callable[[Draws, int], Made]] = {
    "recall": recall,
    "multi_round": multi_round,
    "in_context": in_context,
    "needle": needle,
    "key_value": key_value,
    "multi_hop": multi_hop,
}
TAGS: Mapping[Probe, str] = {
    "recall": "L",
    "multi_round": "M",
    "in_context": "C",
    "needle": "N",
    "key_value": "K",
    "multi_hop": "H",
    "facts": "F",
}


def _name(codes: np.ndarray, width: int = 2) -> np.ndarray:
    """Return names of ``width`` capitals, ``[*codes.shape, width]``."""
    places = N_CAPITALS ** np.arange(width - 1, -1, -1)
    return CAPITALS + codes[..., None] // places % N_CAPITALS


def _lines(*parts: np.ndarray | str) -> np.ndarray:
    """Join byte arrays ``[..., width]``, and text that is the same everywhere, along the last axis as uint8."""
    shape = next(part.shape[:-1] for part in parts if isinstance(part, np.ndarray))
    joined = [
        np.broadcast_to(np.frombuffer(part.encode(), np.uint8), (*shape, len(part)))
        if isinstance(part, str)
        else part.astype(np.uint8)
        for part in parts
    ]
    return np.concatenate(joined, -1)
