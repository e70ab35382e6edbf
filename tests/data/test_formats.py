"""What strangers call a corpus: JSON by any name and shape, CSV, odd Parquet, folders with everything in them."""

import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umscale.data import sources
from umscale.data.corpus import corpora_folder, open_corpus, replaced_name
from umscale.data.prepare import prepare
from umscale.data.sources import Rows, find_sources, read_documents
from umscale.errors import UserError
from umscale_cli.main import main

TEXTS = [f"Row {i}: river, stone and light; {'wood ' * (i % 5)}end." for i in range(40)]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
META = {"name": "corpus", "version": 3}
BOM = b"\xef\xbb\xbf"


def lines(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(path: Path, text_field: str | None = None, rows: Rows | None = None) -> list[str]:
    (source,), _ = find_sources([path], None, text_field)
    found = read_documents(source, text_field or "text", lambda n_bytes: None, rows)
    return [document.decode() for document in found]


def spread(rows, **options) -> bytes:
    return json.dumps(rows, **options).encode()


LONG = [{"text": "x" * (sources.HEAD_BYTES + 100)}, *ROWS]
JSON = {
    "rows": lines(ROWS),
    "rows after a BOM": BOM + lines(ROWS),
    "rows with blank lines": b"\n \n" + lines(ROWS).replace(b"\n", b"\r\n\n"),
    "a row longer than what is looked at": lines(LONG),
    "an array on one line": spread(ROWS),
    "an array": spread(ROWS, indent=1),
    "an array after a BOM": BOM + spread(ROWS, indent=1),
    "an array of a long row": spread(LONG, indent=1),
    "an array of texts": spread(TEXTS),
    "data in an object": spread(META | {"data": ROWS}, indent=2),
    "data in an object on one line": spread({"data": ROWS}),
    "rows spread over lines": b"\n".join(spread(row, indent=2) for row in ROWS),
    "what it is, then rows": lines([META, *ROWS]),
}


@pytest.mark.parametrize("suffix", [".json", ".txt", ""])
@pytest.mark.parametrize("shape", JSON)
def test_json_of_every_shape_is_read_as_json(tmp_path, shape, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(JSON[shape])
    expected = [row["text"] for row in LONG] if "long" in shape and "rows" not in shape else TEXTS
    expected = ["x" * (sources.HEAD_BYTES + 100), *TEXTS] if "long" in shape else TEXTS
    assert read(path) == expected
    if "texts" not in shape:
        renamed = tmp_path / f"renamed{suffix}"
        renamed.write_bytes(JSON[shape].replace(b'"text"', b'"body"'))
        assert read(renamed, "body") == expected
        with pytest.raises(UserError, match=r"no field 'text'.*--text-field"):
            read(renamed)


@pytest.mark.parametrize(
    "content",
    [b"river stone\n\nwalk", b'"one text"', b"12", b"{not json at all}", b"[1] Introduction\n", b"", b"true"],
)
def test_what_is_named_json_never_becomes_text(tmp_path, content):
    for name in ("a.json", "a.jsonl", "a.ndjson"):
        path = tmp_path / name
        path.write_bytes(content)
        if content == b"" and name != "a.json":
            assert read(path) == []
            continue
        with pytest.raises(UserError, match="JSON"):
            read(path)


@pytest.mark.parametrize(
    "content",
    ["[1] Introduction\nMore.\n", "{curly} braces in prose\n", '{"quoted": he said}\n', "Plain.\n", "[ok]\n"],
)
def test_prose_that_begins_like_json_is_prose(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text(content)
    assert "".join(read(path)) == content


def test_an_explicit_field_never_ends_in_plain_text(tmp_path):
    (tmp_path / "a.txt").write_text("plain\n" * 50)
    with pytest.raises(UserError, match="plain text, which has no field 'text'"):
        read(tmp_path / "a.txt", "text")


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", ";"), ("a.txt", ","), ("a", "\t")]
)
def test_csv_is_read_by_its_header(tmp_path, name, separator):
    path = tmp_path / name
    quoted = [f'"{text}, with ""quotes"" and\na line"' for text in TEXTS]
    rows = [separator.join([str(i), text]) for i, text in enumerate(quoted)]
    path.write_bytes(BOM + "\r\n".join([separator.join(["id", "text"]), *rows]).encode())
    assert read(path) == [f'{text}, with "quotes" and\na line' for text in TEXTS]
    with pytest.raises(UserError, match=r"no (column|field) 'body'"):
        read(path, "body")


def test_csv_without_the_column_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,content\n1,a\n2,b\n")
    with pytest.raises(UserError, match=r"no column 'text'.*choose the text with --text-field"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("text,text\n1,a\n")
    with pytest.raises(UserError, match="several columns 'text'"):
        read(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("id,text\n1,a,b\n")
    with pytest.raises(UserError, match="row 2: 3 cells"):
        read(tmp_path / "c.csv")


@pytest.mark.parametrize("which", ["text", "id"])
def test_duplicate_columns_are_one_line(tmp_path, which):
    table = pa.table([pa.array(TEXTS), pa.array(TEXTS), pa.array(TEXTS)], names=["text", which, "other"])
    if which == "id":
        table = pa.table([pa.array(TEXTS)] * 3, names=["text", "id", "id"])
    pq.write_table(table, tmp_path / "a.parquet")
    if which == "id":
        assert read(tmp_path / "a.parquet") == TEXTS
        return
    with pytest.raises(UserError, match="2 columns 'text'"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 512, b"\0" * 10_240])
def test_padding_after_gzip_is_no_damage(tmp_path, padding):
    text = "\n".join(TEXTS).encode()
    (tmp_path / "a.gz").write_bytes(gzip.compress(text) + padding)
    assert "".join(read(tmp_path / "a.gz")).encode() == text


@pytest.mark.parametrize("padding", [b"", b"\0" * 4, b"\0" * 512, b"\0" * (3 << 20)])
def test_padding_after_xz_is_no_damage(tmp_path, padding):
    text = "\n".join(TEXTS).encode()
    (tmp_path / "a.xz").write_bytes(lzma.compress(text) + padding)
    assert "".join(read(tmp_path / "a.xz")).encode() == text
    (tmp_path / "torn.xz").write_bytes(lzma.compress(text)[:-20] + padding)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "torn.xz")


def test_hundreds_of_fields_are_not_all_listed(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({f"key {i:03}": {"body": "x"} for i in range(500)}))
    with pytest.raises(UserError, match="key 039 and 460 more; choose") as caught:
        read(tmp_path / "a.json")
    assert len(str(caught.value)) < 1000


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(BOM + b"first\n" * 100)
    assert "".join(read(tmp_path / "a.txt")) == "first\n" * 100


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd])
@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_bomb_is_defused(tmp_path, monkeypatch, pack, kind):
    monkeypatch.setattr(sources, "BOMB_BYTES", 4 << 20)
    content = b"a bomb \n" * (1 << 20) if kind == "text" else b'[{"text": "' + b"x" * (8 << 20) + b'"}]'
    (tmp_path / "a").write_bytes(pack(content))
    with pytest.raises(UserError, match="200 times as long when decompressed"):
        read(tmp_path / "a")
    monkeypatch.setattr(sources, "BOMB_BYTES", 64 << 20)
    assert sum(map(len, read(tmp_path / "a"))) >= 8 << 20


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_rows_without_text_are_counted(tmp_path, kind):
    values = ["", None, *TEXTS, None, "", ""]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": values}), path)
    elif kind == "csv":
        path.write_text("id,text\n" + "".join(f"1,{'' if v is None else json.dumps(v)}\n" for v in values))
    else:
        rows = [{"text": value} for value in values]
        path.write_bytes(lines(rows) if kind == "jsonl" else spread(rows))
    counted = Rows()
    assert read(path, rows=counted) == TEXTS
    assert (counted.null, counted.empty) == ((0, 5) if kind == "csv" else (2, 3))


@pytest.fixture
def umscale(capsys, monkeypatch):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["umscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        found = capsys.readouterr()
        return ended.value.code, found.out, found.err

    return run


def test_what_is_left_out_is_said(tmp_path, umscale):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines([META, *ROWS, {"text": ""}, {"text": None}]))
    for name in ("README.md", "LICENSE", "SHA256SUMS", "a.jsonl.md5", "_SUCCESS", "checksums.txt"):
        (folder / name).write_text("no text of the corpus\n" * 100)
    (folder / "b.jsonl").symlink_to("a.jsonl")
    os.link(folder / "a.jsonl", folder / "c.jsonl")
    (folder / "d.bin").write_bytes(b"\0\1" * 100)
    code, out, err = umscale("data", "prepare", folder, "--name", "left", "--validation-fraction", "0.1")
    assert code == 0
    said = err.splitlines()
    for name in ("README.md", "LICENSE", "SHA256SUMS", "a.jsonl.md5", "_SUCCESS", "checksums.txt", "d.bin"):
        assert any(line.startswith(f"left out: {name}: ") for line in said), name
    assert "left out: b.jsonl: the same file as a.jsonl" in said
    assert "left out: c.jsonl: the same file as a.jsonl" in said
    assert "rows without text: 1 null, 1 empty, 1 a header without text" in said
    m = open_corpus("left").manifest
    assert (m.null_rows, m.empty_rows, m.header_rows, m.skipped_files) == (1, 1, 1, 9)
    assert m.train.documents + m.validation.documents == len(TEXTS)
    share = m.validation.documents / len(TEXTS)
    assert f"({share:.2%} of all, 10.00% asked for)" in " ".join(out.split())


def test_a_folder_of_nothing_but_companions_says_what_it_held(tmp_path):
    (tmp_path / "README.md").write_text("hello\n" * 100)
    with pytest.raises(UserError, match=r"left out: README\.md"):
        prepare([tmp_path], name="none")


def test_too_few_rows_are_not_told_to_become_shorter_documents(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:1]))
    with pytest.raises(UserError) as caught:
        prepare([tmp_path / "a.jsonl"], name="few")
    assert "blank:1024" not in str(caught.value)
    (tmp_path / "b.txt").write_text("one")
    with pytest.raises(UserError, match="blank:1024"):
        prepare([tmp_path / "b.txt"], name="few")


def test_a_replacement_that_is_killed_leaves_the_old_corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS))
    first = prepare([path], name="kept")
    target = corpora_folder() / "kept"
    program = (
        "import os, shutil, sys; from pathlib import Path; from umscale.data.prepare import prepare\n"
        "plain = Path.rename\n"
        "def rename(self, to):\n"
        "    if self.name == 'kept' and sys.argv[2] == 'before': plain(self, to); os._exit(9)\n"
        "    found = plain(self, to)\n"
        "    if Path(to).name == 'kept': os._exit(9)\n"
        "    return found\n"
        "Path.rename = rename\n"
        "prepare([Path(sys.argv[1])], name='kept', force=True)\n"
    )
    path.write_bytes(lines(ROWS[:30]))
    for moment in ("before", "after"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(path), moment],
            check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 9
        assert replaced_name(target).exists()
        if moment == "before":
            assert not target.exists()
            assert open_corpus("kept").hash == first.hash
    assert open_corpus("kept").hash != first.hash
    prepare([path], name="kept", force=True)
    assert [p.name for p in target.parent.iterdir() if "kept" in p.name] == ["kept"], "no leftovers"
    shutil.rmtree(target)
