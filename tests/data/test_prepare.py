"""From files to a corpus folder: round trips, the split, what is refused, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from umscale.data import prepare as prepare_module
from umscale.data.corpus import (
    Corpus,
    SplitName,
    TokenReader,
    corpora_folder,
    corpus_tokenizer,
    document_index,
    open_corpus,
)
from umscale.data.prepare import build, prepare
from umscale.data.sources import find_sources, parse_boundary
from umscale.data.tokenizing import BYTES, Tokenizer, decode, train_bpe
from umscale.errors import UserError

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "ünïcode", "漢字", "123"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMSCALE_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def make_text(n_documents: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 60))) + "\n" for _ in range(n_documents)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_text(400)))
    return path


def texts_of(corpus: Corpus, split: SplitName) -> list[bytes]:
    """Return a split's documents, read back through the index."""
    reader, tokenizer = TokenReader(corpus, split), corpus_tokenizer(corpus)
    found = []
    for row in document_index(corpus, split):
        tokens = reader.read(int(row["offset"]), int(row["n_tokens"]))
        assert tokens[0] == corpus.eot
        assert not np.any(tokens[1:] == corpus.eot)
        text = decode(tokenizer, tokens)
        assert len(text) == row["n_bytes"]
        found.append(text)
    return found


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_round_trip(rows: Path, tokenizer: str) -> None:
    corpus = prepare([rows], tokenizer=tokenizer)
    train, validation = texts_of(corpus, "train"), texts_of(corpus, "validation")
    expected = [text.encode() for text in make_text(400)]
    assert sorted(train + validation) == sorted(expected)
    assert train == [text for text in expected if text not in set(validation)]  # order is kept
    assert corpus.train_tokens == len(TokenReader(corpus, "train"))
    assert corpus.vocab_size == (257 if tokenizer == "bytes" else 300)
    assert open_corpus("rows", verify=True) == corpus


def test_a_tokenizer_file_and_its_end_of_text(rows: Path, tmp_path: Path) -> None:
    import tokenizers

    trained = train_bpe([rows.read_bytes()], 300)
    model = tokenizers.Tokenizer.from_str(trained.json)
    model.add_special_tokens(["<|endoftext|>"])
    model.enable_truncation(5)
    model.save(str(tmp_path / "own.json"))
    text = "literal <|endoftext|> in the text, and more than five tokens of it"
    rows.write_text(rows.read_text() + json.dumps({"text": text}) + "\n")
    corpus = prepare([rows], tokenizer=str(tmp_path / "own.json"))
    assert corpus.eot == model.token_to_id("<|endoftext|>") == trained.eot
    assert text.encode() in texts_of(corpus, "train") + texts_of(corpus, "validation")


def test_large_vocabularies_take_four_bytes(rows: Path) -> None:
    corpus = prepare([rows])
    assert corpus.manifest.dtype == "<u2"
    wide = Tokenizer(kind="bpe", vocab_size=65537, eot=65536, json="{}")
    assert wide.dtype == np.dtype("<u4")


def test_the_same_text_has_the_same_hash_whatever_it_is_called(rows: Path, tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "other.gz"
    packed.write_bytes(gzip.compress(rows.read_bytes()))
    assert prepare([rows], tokenizer="bpe:300").hash == prepare([packed], tokenizer="bpe:300").hash
    assert prepare([rows], tokenizer="bpe:301", name="third").hash != open_corpus("rows").hash


def test_the_split_depends_on_content_alone_and_duplicates_stay_together(rows: Path, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines(keepends=True)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(lines[::-1] + lines[:200]))
    a, b = (prepare([path], validation_fraction=0.2) for path in (rows, shuffled))
    assert set(texts_of(a, "validation")) == set(texts_of(b, "validation"))
    assert not set(texts_of(b, "train")) & set(texts_of(b, "validation"))
    assert 40 <= a.manifest.validation.documents <= 120
    narrow = prepare([rows], validation_fraction=0.1, name="narrow")
    assert set(texts_of(narrow, "validation")) < set(texts_of(a, "validation"))


@pytest.mark.parametrize(("n_documents", "held_out"), [(2, 1), (19, 1), (50, 5), (160, 16)])
def test_small_corpora_still_have_validation_documents(
    tmp_path: Path, n_documents: int, held_out: int
) -> None:
    path = tmp_path / "small.txt"
    path.write_text("\f".join(make_text(n_documents)))
    corpora = [prepare([path], name=f"c{i}", tokenizer=t) for i, t in enumerate(["bytes", "bpe:300"])]
    for corpus in corpora:
        assert corpus.manifest.validation.documents >= held_out
        assert corpus.manifest.validation.documents <= max(held_out, 0.1 * n_documents)
    assert texts_of(corpora[0], "validation") == texts_of(corpora[1], "validation")


def test_a_bpe_never_sees_validation_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.txt"
    path.write_text("\f".join(make_text(100)))
    seen: list[bytes] = []
    monkeypatch.setattr(
        prepare_module, "train_bpe", lambda sample, size: seen.extend(sample) or train_bpe(sample, size)
    )
    corpus = prepare([path], tokenizer="bpe:300", validation_fraction=0.2)
    assert sorted(seen) == sorted(texts_of(corpus, "train"))
    monkeypatch.setattr(prepare_module, "SAMPLE_BYTES", 2000)
    seen.clear()
    corpus = prepare([path], tokenizer="bpe:300", validation_fraction=0.2, name="bounded")
    assert set(seen) < set(texts_of(corpus, "train"))
    assert 2000 <= sum(map(len, seen)) == corpus.manifest.tokenizer.sample_bytes < 3000


def test_long_documents_are_encoded_as_if_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from umscale.data import tokenizing

    text = " ".join(make_text(300)) + "  \n\n  indented   text \t\n end "
    encoder = tokenizing.Encoder(train_bpe([text.encode()], 500))
    whole, _, _ = encoder.encode([text.encode()])
    monkeypatch.setattr(tokenizing, "PIECE_CHARS", 64)
    pieces, counts, _ = encoder.encode([text.encode()])
    np.testing.assert_array_equal(pieces, whole)
    assert counts.tolist() == [len(whole)]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\f".join(f"caf\xe9 {i}".encode("latin-1") for i in range(40)))
    kept = prepare([path])
    assert all(b"caf\xe9" in text for text in texts_of(kept, "train"))
    assert kept.manifest.undecodable_documents == 0
    counted = prepare([path], tokenizer="bpe:257", name="counted")
    assert counted.manifest.undecodable_documents == 40


def test_shards_are_one_stream(rows: Path) -> None:
    sources, _ = find_sources([rows], parse_boundary("auto"), "text")
    whole = prepare([rows], name="whole")
    target = corpora_folder() / "cut"
    m = whole.manifest
    cut = build(
        target, sources, m.sources, m.recipe, tokenizer=BYTES, force=False,
        progress=lambda *_: None, shard_bytes=1000,
    )  # fmt: skip
    assert len(cut.manifest.train.shards) > 20
    assert all(shard.n_bytes == 1000 for shard in cut.manifest.train.shards[:-1])
    a, b = TokenReader(whole, "train"), TokenReader(cut, "train")
    np.testing.assert_array_equal(a.read(0, len(a)), b.read(0, len(b)))
    np.testing.assert_array_equal(a.read(499, 1502), b.read(499, 1502))
    assert texts_of(cut, "train") == texts_of(whole, "train")


def test_a_name_is_not_taken_over_silently(rows: Path, tmp_path: Path) -> None:
    first = prepare([rows])
    before = (first.path / "manifest.json").stat().st_mtime_ns
    assert prepare([rows]) == first
    assert (first.path / "manifest.json").stat().st_mtime_ns == before  # it was not made again
    with pytest.raises(UserError, match="--force"):
        prepare([rows], tokenizer="bpe:300")
    assert open_corpus("rows") == first
    second = prepare([rows], tokenizer="bpe:300", force=True)
    assert open_corpus("rows", verify=True) == second != first
    assert [p.name for p in corpora_folder().iterdir()] == ["rows"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "no text"),
        ("one short text", {}, "too few different ones"),
        ("same\fsame\fsame", {}, "too few different ones"),
        ("a\n\nb", {"documents": "<|sep|>"}, "separates nothing"),
        ("a\fb", {"tokenizer": "bpe:256"}, "from 257"),
        ("a\fb", {"tokenizer": "bite"}, "did you mean 'bytes'"),
        ("a\fb", {"tokenizer": "missing.json"}, "missing.json"),
        ("a\fb", {"name": "../up"}, "cannot name"),
        ("a\fb", {"name": "kjv"}, "choose another"),
        ("a\fb", {"validation_fraction": 0.0}, "validation fraction"),
        ("a\fb", {"validation_fraction": float("nan")}, "validation fraction"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    tmp_path: Path, content: str, options: dict, message: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        prepare([path], **options)
    assert not corpora_folder().exists() or not list(corpora_folder().iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare([rows], name="there")

    class Full(prepare_module._HashedFile):
        def write(self, data: memoryview) -> None:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(data)

    monkeypatch.setattr(prepare_module, "_HashedFile", Full)
    with pytest.raises(UserError, match="is full"):
        prepare([rows])
    assert [p.name for p in corpora_folder().iterdir()] == ["there"]


PREPARE = """
import sys, time
from pathlib import Path
from umscale.data.prepare import prepare
def progress(stage, done, total):
    if stage == "tokens" and len(sys.argv) > 3:
        print("writing", flush=True)
        time.sleep(60)
print(prepare([Path(sys.argv[1])], name=sys.argv[2], progress=progress).hash)
"""


def run(source_paths: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": source_paths}
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_prepare_is_invisible_and_cleaned_up(rows: Path, source_paths: str) -> None:
    process = run(source_paths, str(rows), "victim", "slow")
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    (temporary,) = corpora_folder().iterdir()
    assert temporary.name.startswith(".")
    old = time.time() - 3600
    os.utime(temporary, (old, old))
    prepare([rows], name="one")
    assert temporary.exists()  # its process lives
    os.utime(temporary, (old, old))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(UserError, match="no corpus 'victim'"):
        open_corpus("victim")
    prepare([rows], name="two")
    assert sorted(p.name for p in corpora_folder().iterdir()) == ["one", "two"]


def test_processes_that_make_the_same_corpus_at_once_agree(rows: Path, source_paths: str) -> None:
    processes = [run(source_paths, str(rows), "shared") for _ in range(3)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, results
    assert {out.strip() for out, _ in results} == {open_corpus("shared", verify=True).hash}
    assert [p.name for p in corpora_folder().iterdir()] == ["shared"]


MEMORY = """
import gzip, resource, sys
from pathlib import Path
from umscale.data.prepare import prepare
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
prepare([Path(sys.argv[1])], name="warm")
before = peak()
corpus = prepare([Path(sys.argv[2])], name="large")
print(corpus.manifest.train.n_bytes + corpus.manifest.validation.n_bytes, peak() - before)
"""


def test_memory_is_flat(tmp_path: Path, source_paths: str) -> None:
    """200 MB of text, half of it in one endless line, take no more memory than a text of 20 MB."""
    import gzip

    line = "".join(make_text(2000)).encode()
    for name, target in (("small.gz", 20_000_000), ("large.gz", 200_000_000)):
        repeat = target // len(line) // 2
        with gzip.open(tmp_path / name, "wb", compresslevel=1) as stream:
            for i in range(repeat):
                stream.write(b"%d " % i + line)
            for i in range(repeat):
                stream.write(b"%d " % i + line.replace(b"\n", b" "))
    environment = {**os.environ, "PYTHONPATH": source_paths}
    output = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "small.gz"), str(tmp_path / "large.gz")],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    n_bytes, growth_mb = map(int, output.split())
    assert n_bytes > 199_000_000
    assert growth_mb < 32
