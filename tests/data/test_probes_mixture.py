"""Probes among the training sequences, and what is made of a model's answers."""

import math
from pathlib import Path

import numpy as np
import pytest

from umscale.data.batches import TrainStream
from umscale.data.corpus import Corpus, open_corpus
from umscale.data.probes import probes
from umscale.data.probes_mixture import ProbeMixture, ProbeSet, check_corpus
from umscale.data.probes_score import score
from umscale.data.synthetic import MarkovFacts
from umscale.data.synthetic_corpus import generate
from umscale.errors import UserError
from umscale.spec import DataSpec

TASKS = ("recall", "multi_hop", "facts")
SEQ_LEN = 64


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate("mixed", MarkovFacts(document=64), 60_000)


def data(fraction: float, facts: int = 23) -> DataSpec:
    return DataSpec(probes=TASKS, probe_fraction=fraction, probe_facts=facts, seq_len=SEQ_LEN)


def stream(corpus: Corpus, fraction: float | None, batch_size: int = 6) -> TrainStream:
    mixture = None if fraction is None else ProbeMixture(data(fraction), 4)
    return TrainStream(corpus, SEQ_LEN, batch_size, 4, mixture)


def sequences(found: TrainStream, steps: int) -> np.ndarray:
    return np.concatenate([found.batch(step) for step in range(steps)])


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 1 / 3, 0.9])
def test_the_text_keeps_its_order_and_tasks_take_turns(corpus: Corpus, fraction: float) -> None:
    mixed, text = sequences(stream(corpus, fraction), 60), sequences(stream(corpus, None), 60)
    is_probe = np.isin(mixed[:, 1], [ord("L"), ord("H"), ord("F")]) & (mixed[:, 0] == 256)
    assert abs(is_probe.sum() - 360 * fraction) <= 1
    np.testing.assert_array_equal(mixed[~is_probe], text[: (~is_probe).sum()])
    facts = ProbeMixture(data(fraction), 4).facts
    for i, task in enumerate(TASKS):
        mine = mixed[is_probe][i::3]
        expected = probes(task, 4, "train", np.arange(len(mine)), SEQ_LEN, facts)  # type: ignore[arg-type]
        np.testing.assert_array_equal(mine, expected.windows)


def test_none_and_all(corpus: Corpus) -> None:
    np.testing.assert_array_equal(sequences(stream(corpus, 0.0), 9), sequences(stream(corpus, None), 9))
    assert (sequences(stream(corpus, 1.0), 9)[:, 0] == 256).all()


def test_batches_are_a_function_of_the_step_whatever_they_are_cut_into(corpus: Corpus) -> None:
    whole = sequences(stream(corpus, 0.4), 30)
    np.testing.assert_array_equal(sequences(stream(corpus, 0.4, batch_size=1), 180), whole)
    np.testing.assert_array_equal(stream(corpus, 0.4).batch(29), whole[-6:])  # resuming needs no state
    found = stream(corpus, 0.4)
    for step in (5, 29, 5):
        parts = [found.batch(step, part, 3) for part in range(3)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[step * 6 : step * 6 + 6])


@pytest.mark.parametrize("facts", [3, 23, 40])
def test_exposures_are_counted(corpus: Corpus, facts: int) -> None:
    mixture = ProbeMixture(data(0.5, facts), 4)
    assert mixture.facts is not None
    names = [bytes(row[:5]) for row in mixture.facts.statements]
    found = TrainStream(corpus, SEQ_LEN, 1, 4, mixture)
    shown = np.zeros(facts)
    for step in range(90):
        window = bytes(found.batch(step)[0][1:].astype(np.uint8))
        if window.startswith(b"F"):
            shown += [name in window for name in names]
        assert mixture.exposures(step + 1) == pytest.approx(shown.mean())
        seen = (shown > 0).mean()
        assert mixture.facts_seen(step + 1) == pytest.approx(seen, abs=0.0 if facts < 23 else 0.15)
    assert mixture.exposures(40) > 0
    assert ProbeMixture(data(0.0), 4).facts_seen(10**6) == 0


def test_held_out_probes_are_not_trained_on(corpus: Corpus) -> None:
    mixture = ProbeMixture(data(1.0), 4)
    held, trained = mixture.held_out(), sequences(TrainStream(corpus, SEQ_LEN, 6, 4, mixture), 60)
    assert held.tasks == TASKS
    assert held.counts == (64, 64, 23 // 5)
    mine = {row.tobytes() for row in held.windows}
    assert len(mine) == sum(held.counts)
    assert not mine & {row.tobytes() for row in trained}
    stated = [bytes(row.astype(np.uint8)) for row in held.windows[128:, 1:]]
    names = [text[i : i + 5] for text in stated for i in range(text.index(b"=") - 5, 60, 11)]
    assert len(set(names)) == len(names) == 20  # no fact twice


def scored(
    nats: float, right: float, sequences: int = 600, fraction: float = 1.0
) -> tuple[ProbeSet, list[dict]]:
    mixture = ProbeMixture(data(fraction), 4)
    held = mixture.held_out()
    shape = len(held.windows), SEQ_LEN
    rng = np.random.default_rng(0)
    hits = (rng.random(shape) < right).astype(float)
    return held, score(held, np.full(shape, nats), hits, mixture, sequences, 100)


def test_scores_of_known_answers() -> None:
    _, perfect = scored(0.0, 1.0)
    for row in perfect:
        assert (row["accuracy"], row["answer_accuracy"], row["nats"]) == (1, 1, 0)
        assert row["chance"] == 1 / 16
    assert [row["n_answers"] for row in perfect] == [64, 64 * 2, 4 * 5]
    assert [row["answer_symbols"] for row in perfect] == [11, 1, 4]
    facts = perfect[2]
    assert facts["stored_bits"] == pytest.approx(23 * 16)  # all facts, from those evaluated
    assert facts["bits_per_param"] == pytest.approx(23 * 16 / 100)
    assert facts["ceiling"] == pytest.approx(1.0)
    assert all("stored_bits" not in row for row in perfect[:2])

    _, blind = scored(math.log(16), 1 / 16)
    assert blind[2]["stored_bits"] == pytest.approx(0, abs=1e-9)
    assert abs(blind[0]["accuracy"] - 1 / 16) < 4 * math.sqrt(1 / 16 * 15 / 16 / (64 * 11))
    assert blind[0]["answer_accuracy"] == 0
    _, half = scored(math.log(4), 0.5)
    assert half[2]["stored_bits"] == pytest.approx(23 * 8)
    assert half[1]["accuracy"] == half[1]["answer_accuracy"]  # answers of one symbol
    _, worse = scored(5.0, 0.0)
    assert worse[2]["stored_bits"] == 0


def test_the_ceiling_of_facts_is_what_training_has_shown() -> None:
    assert scored(0.0, 1.0, sequences=0)[1][2]["ceiling"] == 1 / 16
    assert scored(0.0, 1.0, fraction=0.0)[1][2]["ceiling"] == 1 / 16
    early = scored(0.0, 1.0, sequences=3)[1][2]
    assert early["exposures"] == pytest.approx(5 / 23)
    assert early["ceiling"] == pytest.approx(5 / 23 + 18 / 23 / 16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"probes": ("recal",)}, "must be one of"),
        ({"probes": ("recall", "recall")}, "twice"),
        ({"probe_fraction": 0.1}, "needs tasks"),
        ({"probes": ("recall",), "probe_fraction": 1.5}, "between 0 and 1"),
        ({"probes": ("recall",), "seq_len": 63}, "too short"),
        ({"probe_facts": 0}, "probe_facts"),
    ],
)
def test_bad_settings(wrong: dict, message: str) -> None:
    from umscale.spec import from_dict

    with pytest.raises(UserError, match=message):
        from_dict(DataSpec, wrong)


def test_a_corpus_that_is_not_of_bytes(corpus: Corpus, tmp_path: Path) -> None:
    check_corpus(data(0.1), corpus)
    check_corpus(DataSpec(), open_corpus("kjv"))
    with pytest.raises(UserError, match="written in bytes"):
        check_corpus(data(0.1), open_corpus("kjv"))


def test_the_order_of_tasks_is_no_difference() -> None:
    assert DataSpec(probes=("facts", "recall")) == DataSpec(probes=("recall", "facts"))
