"""Finding, checking and reading prepared corpora; manifests are untrusted."""

import copy
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umscale.data import embedded
from umscale.data.batches import validation_windows
from umscale.data.corpus import (
    Corpus,
    TokenReader,
    corpora_folder,
    corpus_tokenizer,
    data_home,
    document_index,
    list_corpora,
    open_corpus,
    read_corpus,
)
from umscale.data.prepare import prepare
from umscale.data.tokenizing import decode
from umscale.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMSCALE_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "fables.txt"
    path.write_text("\f".join(f"Fable {i}. " + "A fox and a crow. " * (i % 9 + 1) for i in range(120)))
    return prepare([path], tokenizer="bpe:300")


def edit(corpus: Corpus, change: dict[str, Any]) -> None:
    path = corpus.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_where_corpora_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data_home() == tmp_path / "home"
    monkeypatch.delenv("UMSCALE_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert data_home() == Path("/xdg/umscale")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_home() == Path.home() / ".local/share/umscale"


def test_by_name_and_by_path(corpus: Corpus, tmp_path: Path) -> None:
    assert open_corpus("fables") == corpus
    moved = tmp_path / "elsewhere"
    corpus.path.rename(moved)
    assert open_corpus(moved).hash == corpus.hash
    assert open_corpus(str(moved), verify=True).path == moved
    with pytest.raises(UserError, match=r"no corpus 'fables' .*umscale data prepare FILE --name fables"):
        open_corpus("fables")


def test_an_unknown_name_gets_the_nearest(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="did you mean 'fables'"):
        open_corpus("fable")


@pytest.mark.parametrize("file", ["train-00000.bin", "validation-00000.bin", "train-documents.bin"])
def test_a_truncated_file_is_named(corpus: Corpus, file: str) -> None:
    path = corpus.path / file
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{file}: corrupt"):
        open_corpus("fables")
    path.unlink()
    with pytest.raises(UserError, match=f"{file}: cannot be read"):
        open_corpus("fables")


@pytest.mark.parametrize("file", ["train-00000.bin", "validation-documents.bin", "tokenizer.json"])
def test_changed_content_is_found_on_request(corpus: Corpus, file: str) -> None:
    path = corpus.path / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    open_corpus("fables")
    with pytest.raises(UserError, match=f"{file}: corrupt"):
        open_corpus("fables", verify=True)


def test_ids_outside_the_vocabulary_are_caught_when_read(corpus: Corpus) -> None:
    path = corpus.path / "train-00000.bin"
    tokens = np.fromfile(path, "<u2")
    tokens[100] = 65535
    tokens.tofile(path)
    with pytest.raises(UserError, match=r"train-00000.bin: corrupt, token 65535"):
        TokenReader(corpus, "train").read(90, 20)


def test_a_document_index_that_lies_is_caught(corpus: Corpus) -> None:
    path = corpus.path / "validation-documents.bin"
    rows = document_index(corpus, "validation").copy()
    rows["offset"][0] = 1 << 40
    rows.tofile(path)
    with pytest.raises(UserError, match=r"validation-documents.bin: corrupt"):
        validation_windows(corpus, 32, 10**6)


def test_a_newer_format_is_refused(corpus: Corpus) -> None:
    edit(corpus, {"version": 2, "unheard_of": 1})
    with pytest.raises(UserError, match="newer umscale"):
        open_corpus("fables")


def test_one_damaged_corpus_does_not_hide_the_others(corpus: Corpus, tmp_path: Path) -> None:
    other = prepare([tmp_path / "fables.txt"], name="other")
    (corpus.path / "manifest.json").write_text("{")
    corpora, problems = list_corpora()
    assert corpora == [other]
    assert len(problems) == 1
    assert "fables" in problems[0]


@pytest.mark.parametrize(
    "file",
    ["../../secret.bin", "/etc/passwd", "train-00001.bin", "train-00000.bin\x00", "train-documents.bin"],
)
def test_files_outside_the_folder_are_refused(corpus: Corpus, file: str) -> None:
    tree = json.loads((corpus.path / "manifest.json").read_text())
    tree["train"]["shards"][0]["name"] = file
    edit(corpus, tree)
    with pytest.raises(UserError, match="damaged manifest"):
        open_corpus("fables")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_to_what_determines_the_tokens_is_refused(corpus: Corpus, data: st.DataObject) -> None:
    """Replace or drop one value anywhere; it is a UserError, or a part that the hash does not cover."""
    tree = json.loads((corpus.path / "manifest.json").read_text())
    changed, node, place = copy.deepcopy(tree), tree, []
    while isinstance(node, (dict, list)) and node:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        place.append(data.draw(st.sampled_from(list(keys))))
        node = node[place[-1]]
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    if data.draw(st.booleans()):
        parent[place[-1]] = data.draw(VALUES)
    else:
        del parent[place[-1]]
    folder = corpus.path.parent / "changed"
    folder.mkdir(exist_ok=True)
    for file in corpus.path.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).hardlink_to(file)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(changed))
    try:
        read = read_corpus(folder).manifest
    except UserError:
        return
    ours = corpus.manifest
    assert (read.train, read.validation, read.vocab_size, read.eot) == (
        ours.train,
        ours.validation,
        ours.vocab_size,
        ours.eot,
    )


def open_hash(home: str) -> str:
    os.environ["UMSCALE_DATA"] = home
    return open_corpus("kjv").hash


@pytest.fixture(scope="module")
def embedded_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes are at once the first to open the embedded corpus."""
    folder = tmp_path_factory.mktemp("embedded")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        hashes = pool.map(open_hash, [str(folder)] * 2, chunksize=1)
    assert len(set(hashes)) == 1
    return folder


def test_the_embedded_corpus(embedded_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the released one, whichever process made it, and nothing else is left behind."""
    monkeypatch.setenv("UMSCALE_DATA", str(embedded_home))
    corpus = open_corpus("kjv", verify=True)
    assert corpus.hash == "075366376a696039d176d9576abc32af6870562ddecaddee9bf2619c0a19621a"
    assert (corpus.manifest.train.documents, corpus.manifest.validation.documents) == (1121, 68)
    assert corpus.train_tokens > 10**6
    assert corpus.validation_tokens > 65_536
    text = decode(corpus_tokenizer(corpus), TokenReader(corpus, "train").read(0, 30))
    assert text.startswith(b"Genesis 1\n\nIn the beginning God created the heaven and the earth.")
    assert [p.name for p in corpora_folder().iterdir()] == ["kjv"]


def test_a_damaged_embedded_corpus_is_made_again(
    embedded_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UMSCALE_DATA", str(embedded_home))
    corpus = open_corpus("kjv")
    (corpus.path / "train-00000.bin").write_bytes(b"")
    assert open_corpus("kjv", verify=True) == corpus
    monkeypatch.setattr(embedded, "TEXT_SHA256", "0" * 64)
    with pytest.raises(UserError, match="install umscale again"):
        open_corpus("kjv")
