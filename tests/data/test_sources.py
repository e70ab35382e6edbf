"""Where documents begin and end, and what can be read."""

import bz2
import gzip
import itertools
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umscale.data.sources import (
    MAX_DOCUMENT_BYTES,
    Boundary,
    find_sources,
    parse_boundary,
    read_documents,
    recognise,
    split,
)
from umscale.errors import UserError

TEXT = "".join(f"Line {i} of a plain text, ünïcode included.\n{chr(10) * (i % 7 == 0)}" for i in range(9000))


def documents(path: Path, boundary: str = "auto", text_field: str | None = None) -> list[bytes]:
    (source,), _ = find_sources([path], parse_boundary(boundary), text_field)
    return list(read_documents(source, text_field or "text", lambda n_bytes: None))


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK = {"txt": bytes, "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd}


@pytest.mark.parametrize("kind", PACK)
def test_every_packing_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "no-telling-suffix"
    path.write_bytes(PACK[kind](TEXT.encode()))
    found = documents(path)
    assert b"".join(found) == TEXT.encode()
    assert len(found) > 10
    assert all(len(document) >= 8192 for document in found[:-1])
    assert all(document.endswith(b"\n\n") for document in found[:-1])


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2", "zst"])
def test_several_compressed_streams_in_one_file_are_one_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(PACK[kind](b"one\n") + PACK[kind](b"two\n"))
    assert b"".join(documents(path)) == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(kind, damage) for kind in ("gz", "xz", "bz2", "zst") for damage in ("truncated", "garbled")][:-1],
)  # a zstd stream need not carry a checksum, so garbling one may go unnoticed
def test_damaged_compressed_data_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    data = bytearray(PACK[kind](TEXT.encode()))
    if damage == "truncated":
        del data[-5:]
    else:
        data[len(data) // 2 : len(data) // 2 + 4] = b"\xff\x00\xff\x00"
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(UserError, match="broken"):
        documents(path)


def test_a_mediawiki_dump_is_cut_at_pages_and_loses_nothing() -> None:
    dump = (
        b"<mediawiki>\n  <siteinfo/>\n  <page>\n    a <page> in text\n  </page>\n  <page>\n    b, and no end"
    )
    found = list(split([dump], recognise(dump)))
    assert b"".join(found) == dump
    assert [d[:9] for d in found] == [b"<mediawik", b"  <page>\n", b"  <page>\n"]


def test_form_feeds_are_recognised_and_stripped() -> None:
    text = b"one\f\ftwo\n\fthree"
    assert list(split([text], recognise(text))) == [b"one", b"two\n", b"three"]


def test_a_separator_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n---\ntwo\n---\n")
    assert documents(path, r"---\n") == [b"one\n", b"two\n"]
    assert documents(path, "file") == [b"one\n---\ntwo\n---\n"]


def test_blank_lines_with_spaces_and_carriage_returns_count() -> None:
    text = (b"x" * 99 + b"\r\n\r\n" + b"y" * 99 + b"\n \t\n") * 3
    found = list(split([text], Boundary(kind="blank", min_bytes=64)))
    assert [len(d) for d in found] == [103, 103] * 3


def test_text_without_blank_lines_is_cut_at_line_ends_and_in_the_end_anywhere() -> None:
    boundary = Boundary(kind="blank", min_bytes=100)
    lines = b"0123456789\n" * 500
    found = list(split([lines], boundary))
    assert b"".join(found) == lines
    assert all(d.endswith(b"\n") and len(d) <= boundary.window for d in found)
    solid = "é".encode() * 5000
    found = list(split([b"a" + solid], boundary))
    assert b"".join(found) == b"a" + solid
    assert all(d.decode() for d in found)  # never inside a character


def test_no_document_is_longer_than_the_limit() -> None:
    text = b"line of text\n" * (2 * MAX_DOCUMENT_BYTES // 13)
    found = list(split([text], Boundary(kind="file")))
    assert b"".join(found) == text
    assert max(map(len, found)) <= MAX_DOCUMENT_BYTES
    assert all(d.endswith(b"\n") for d in found)


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(
        st.sampled_from([b"a", b"\n", b"\n\n", b" ", b"<page>", b"  <page>\n", b"\f", b"\xc3\xa9"])
    ),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    kind=st.sampled_from(["page", "blank", "separator"]),
)
def test_chunks_do_not_matter_and_nothing_is_lost(text: list[bytes], cuts: list[int], kind: str) -> None:
    whole = b"".join(text) * 3
    boundary = Boundary(kind=kind, separator=b"\f", min_bytes=8)  # type: ignore[arg-type]
    found = list(split([whole], boundary))
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    chunks = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert list(split(chunks, boundary)) == found
    assert all(found)
    assert b"".join(found) == (whole.replace(b"\f", b"") if kind == "separator" else whole)


def test_rows_of_jsonl(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "body": "one\n\ntwo"},
        {"id": 2, "body": None},
        {"id": 3, "body": ""},
        {"id": 4, "body": "ü"},
    ]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode()))
    assert documents(path, text_field="body") == [b"one\n\ntwo", "ü".encode()]
    with pytest.raises(UserError, match=r"rows.jsonl.gz:1: no field 'bodi'; did you mean 'body'"):
        documents(path, text_field="bodi")


def test_jsonl_is_recognised_without_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "c4-train.json"
    path.write_text('{"text": "one", "url": "x"}\n{"text": "two", "url": "y"}\n')
    assert documents(path) == [b"one", b"two"]


@pytest.mark.parametrize("row", ['{"text": 3}', "{", "[1]", '{"text": ' + "[" * 99999])
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{row}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:2: "):
        documents(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_rows_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["one", None, "", "zwölf\n", "one"] * 200
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"content": pa.array(texts, kind), "n": range(1000)}), path, row_group_size=300)
    assert documents(path, text_field="content") == [t.encode() for t in texts if t]
    with pytest.raises(UserError, match="no column 'contend'; did you mean 'content'"):
        documents(path, text_field="contend")
    with pytest.raises(UserError, match="'n' holds int64, not text"):
        documents(path, text_field="n")


def test_a_torn_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.parquet"
    pq.write_table(pa.table({"text": ["a"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"torn\.parquet"):
        documents(path)


def test_folders_are_read_in_order_without_hidden_and_binary_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c.txt", ".hidden", ".git/config", "image.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x89PNG\0\0" if name.endswith("png") else name.encode())
    sources, skipped = find_sources([tmp_path], None, None)
    assert [s.label for s in sources] == ["b.txt", "a/c.txt", "a/z.txt"]
    assert skipped == ["image.png: binary"]
    with pytest.raises(UserError, match="binary"):
        find_sources([tmp_path / "image.png"], None, "text")


@pytest.mark.parametrize("text", ["", "blank:7", "blank:x", "blank:99999999999999999999"])
def test_impossible_boundaries(text: str) -> None:
    with pytest.raises(UserError, match="documents"):
        parse_boundary(text)
