"""The order of training windows, and the validation set."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umscale.data.batches import TrainStream, permute, validation_windows
from umscale.data.corpus import Corpus, TokenReader, corpus_tokenizer, document_index
from umscale.data.prepare import prepare
from umscale.data.tokenizing import decode
from umscale.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, 300)
    texts = [bytes(rng.integers(97, 123, n, dtype=np.uint8)) for n in lengths]
    path = tmp_path_factory.mktemp("text") / "random.txt"
    path.write_bytes(b"\f".join([*texts, *texts[:50]]))
    return prepare([path], name="random", validation_fraction=0.2, force=True)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5000), key=st.integers(0, 2**63 - 1))
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 2**40), index=st.data(), key=st.integers(0, 2**63 - 1))
def test_permute_is_stateless_and_stays_inside(n: int, index: st.DataObject, key: int) -> None:
    chosen = np.array(sorted(index.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=20))))
    images = permute(chosen, n, key)
    assert len(set(images.tolist())) == len(chosen)
    assert images.min() >= 0
    assert images.max() < n
    assert permute(chosen[-1:], n, key)[0] == images[-1]


def test_permute_looks_random() -> None:
    """Over keys: each image of each index equally often; over indices: no trace of order."""
    counts = np.zeros((7, 7))
    for key in range(1400):
        counts[np.arange(7), permute(np.arange(7), 7, key)] += 1
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert chi2 < 36 + 5 * np.sqrt(72)  # 36 degrees of freedom
    n = 20_000
    order = permute(np.arange(n), n, 1).astype(float)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(order, permute(np.arange(n), n, 2))[0, 1]) < 4 / np.sqrt(n)


def test_an_epoch_reads_every_window_once(corpus: Corpus) -> None:
    stream = TrainStream(corpus, 32, 1, seed=5)
    n = stream.n_windows
    assert stream.tokens_per_epoch == n * 32 > corpus.train_tokens - 64
    epochs = [stream.starts(np.arange(e * n, (e + 1) * n)) for e in range(6)]
    for starts in epochs:
        assert np.array_equal(np.diff(np.sort(starts)), np.full(n - 1, 32))
        assert starts.min() >= 0
        assert starts.max() + 33 <= corpus.train_tokens
    assert len({tuple(starts) for starts in epochs}) == 6
    assert len({int(starts.min()) for starts in epochs}) > 1  # offsets differ


def test_batches_hold_the_corpus(corpus: Corpus) -> None:
    stream, reader = TrainStream(corpus, 32, 4, seed=5), TokenReader(corpus, "train")
    starts = stream.starts(np.arange(12, 16))
    batch = stream.batch(3)
    assert batch.dtype == np.int64
    assert batch.shape == (4, 33)
    for row, start in zip(batch, starts, strict=True):
        np.testing.assert_array_equal(row, reader.read(int(start), 33))


def test_resuming_needs_no_state_and_batch_size_only_groups(corpus: Corpus) -> None:
    stream = TrainStream(corpus, 256, 6, seed=5)
    steps = 2 * stream.n_windows // 6 + 3  # across two ends of an epoch
    whole = np.concatenate([stream.batch(step) for step in range(steps)])
    np.testing.assert_array_equal(TrainStream(corpus, 256, 6, seed=5).batch(steps - 1), whole[-6:])
    single = TrainStream(corpus, 256, 1, seed=5)
    np.testing.assert_array_equal(np.concatenate([single.batch(i) for i in range(len(whole))]), whole)
    assert not np.array_equal(TrainStream(corpus, 256, 6, seed=6).batch(0), whole[:6])


def test_a_corpus_too_short_for_a_window(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"lower data\.seq_len"):
        TrainStream(corpus, corpus.train_tokens, 1, seed=0)
    assert TrainStream(corpus, corpus.train_tokens // 2, 1, seed=0).batch(7).shape[0] == 1


def test_validation_windows_are_whole_documents_each_once(corpus: Corpus) -> None:
    found = validation_windows(corpus, 32, 10**6)
    reader, index = TokenReader(corpus, "validation"), document_index(corpus, "validation")
    by_id = {f"{row['hash']:016x}": row for row in index}
    assert len(index) > len(by_id)  # the split does hold duplicates
    assert list(found.ids) == sorted(by_id)
    for d, name in enumerate(found.ids):
        row = by_id[name]
        tokens = reader.read(int(row["offset"]), int(row["n_tokens"]))
        inputs, targets = found.inputs[found.document == d], found.targets[found.document == d]
        real = targets >= 0
        np.testing.assert_array_equal(inputs[real], tokens[:-1])
        np.testing.assert_array_equal(targets[real], tokens[1:])
        assert inputs[0, 0] == corpus.eot
        assert (inputs[~real] == corpus.eot).all()
        assert real.sum() == found.n_tokens[d] == len(tokens) - 1
        assert found.n_bytes[d] == row["n_bytes"]
    assert found.inputs.shape == found.targets.shape == (len(found.document), 32)
    assert found.inputs.dtype == found.targets.dtype == np.int64
    assert (found.targets >= 0).any(axis=1).all()  # no window of padding alone


def test_validation_sets_nest_and_keep_their_limit(corpus: Corpus) -> None:
    large, small = (validation_windows(corpus, 32, limit) for limit in (4000, 2000))
    assert large.n_tokens.sum() <= 4000
    assert small.n_tokens.sum() <= 2000
    assert large.n_tokens.sum() > 3000
    assert large.ids[: len(small.ids)] == small.ids
    narrow = validation_windows(corpus, 32, 800)
    assert narrow.n_tokens.max() <= 200  # longer ones are passed over
    assert not Counter(narrow.ids) - Counter(validation_windows(corpus, 7, 800).ids)  # whatever seq_len


def test_validation_takes_many_documents_and_the_beginning_of_long_ones(corpus: Corpus) -> None:
    whole = validation_windows(corpus, 32, 10**6)
    found = validation_windows(corpus, 32, 4000, 40)
    n = len(found.ids)
    assert n >= 40
    assert found.ids == whole.ids[:n], "in order of hash, none passed over"
    assert found.n_tokens.max() == 100  # 4000 / 40
    np.testing.assert_array_equal(found.n_tokens, np.minimum(whole.n_tokens[:n], 100))
    assert found.n_tokens.sum() <= 4000
    np.testing.assert_array_equal(found.n_bytes, found.n_tokens)  # a corpus of bytes
    for d in range(n):
        parts = [v.targets[v.document == d] for v in (found, whole)]
        first, text = (part[part >= 0] for part in parts)
        np.testing.assert_array_equal(first, text[: len(first)])
    few = validation_windows(corpus, 32, 10**6, 10**5)  # more than the split has: all, whole
    assert few.ids == whole.ids
    assert few.n_tokens.max() <= 10**6 // len(whole.ids)


def test_bytes_of_a_cut_document_are_those_of_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\f".join(f"{i} words and more words, again and again {i}. " * 40 for i in range(200)))
    corpus = prepare([path], name="cut", tokenizer="bpe:300", force=True)
    found = validation_windows(corpus, 32, 1000, 10)
    text = corpus_tokenizer(corpus)
    assert len(found.ids) >= 10
    for d in range(len(found.ids)):
        targets = found.targets[found.document == d]
        assert found.n_bytes[d] == len(decode(text, targets[targets >= 0]))
        assert found.n_bytes[d] > found.n_tokens[d]


def test_validation_documents_that_are_all_too_long(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\f".join("x" * n for n in range(500, 600)))
    corpus = prepare([path], name="long", force=True)
    lengths = document_index(corpus, "validation")["n_bytes"]
    found = validation_windows(corpus, 64, 1000)
    assert found.n_tokens.tolist() == [lengths.min()]
    with pytest.raises(UserError, match=r"raise data.validation_tokens"):
        validation_windows(corpus, 64, 400)
