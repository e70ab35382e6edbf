"""From files to documents: what a source is, and where its documents begin and end.

A document is a byte string. Sources are read as streams of bounded chunks, so memory does not depend on their
size; no document exceeds ``MAX_DOCUMENT_BYTES`` (a longer one is cut at a line end).

What a file is follows from its content, not from its name alone: JSON and CSV are read as rows or refused with advice,
and never become training text by accident.
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from umscale.errors import UserError, nearest
from umscale.trees import parse_json

CHUNK_BYTES = 4 << 20
HEAD_BYTES = 1 << 20
"""How much of a file its kind and its document boundaries are recognised from."""
MAX_DOCUMENT_BYTES = 8 << 20
MAX_LINE_BYTES = 64 << 20
"""Longest JSONL row that is accepted."""
BLANK_BYTES = 8 << 10
PARQUET_ROWS = 256
MAX_JSON_BYTES = 256 << 20
"""Longest JSON value that is no line of its own; an array of rows takes several times its size in memory."""
BOMB_BYTES = 64 << 20
BOMB_RATIO = 200
"""A compressed file that becomes so many times longer, beyond so many bytes, is refused: text shrinks to a tenth."""
DEFAULT_FIELD = "text"
BOM = b"\xef\xbb\xbf"

SourceKind = Literal["text", "jsonl", "json", "csv", "parquet"]
Advance = Callable[[int], None]
"""Told how many bytes of the current source have been read."""

_COMPRESSION = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
)
_COMPANIONS = re.compile(
    r"(?i)(readme|license|licence|copying|notice|changelog|citation|dataset_infos?)([._-].*)?|_.*|.*\.(md5|sha\d+|sig|asc|crc)"
    r"|(md5|sha\d*)sums?([._-].*)?|checksums?([._-].*)?|manifest\.(json|txt|csv)"
)
"""Files that folders of text come with and that are none of it."""
_JSON_OBJECT = re.compile(rb'\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})')
_JSON_ARRAY = re.compile(rb'\s*\[\s*(?:\{\s*["}]|\[|")')
_ROWS_SUFFIXES = (".jsonl", ".ndjson", ".json", ".geojson")
_TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Boundary:
    """Where a plain text is cut into documents."""

    kind: Literal["file", "page", "blank", "separator"]
    separator: bytes = b""
    """Stands between documents and belongs to none."""
    min_bytes: int = BLANK_BYTES
    """``blank``: a document ends at the first blank line after this many bytes."""

    @property
    def window(self) -> int:
        """A document's end is looked for within this many bytes."""
        return 8 * self.min_bytes if self.kind == "blank" else MAX_DOCUMENT_BYTES

    def __str__(self) -> str:
        match self.kind:
            case "blank":
                return f"blank:{self.min_bytes}"
            case "separator":
                return f"separator {self.separator!r}"
        return self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One input file."""

    path: Path
    label: str
    """The file's name; below a folder, the path relative to it."""
    kind: SourceKind
    compression: str
    """``gzip``, ``xz``, ``zstd``, ``bz2`` or empty."""
    n_bytes: int
    boundary: Boundary | None
    """Plain text only."""


def parse_boundary(text: str) -> Boundary | None:
    r"""Read ``auto`` (None), ``file``, ``page``, ``blank``, ``blank:BYTES`` or a separator (``\n``, ``\f``, ``\t``).

    Raises:
        UserError: an empty separator or an impossible size.
    """
    kind, _, size = text.partition(":")
    if text == "auto":
        return None
    if text in ("file", "page"):
        return Boundary(kind="file" if text == "file" else "page")
    if kind == "blank":
        if size and not (size.isdecimal() and 64 <= int(size) <= MAX_DOCUMENT_BYTES // 8):
            raise UserError(f"documents {text!r}: BYTES must lie between 64 and {MAX_DOCUMENT_BYTES // 8}")
        return Boundary(kind="blank", min_bytes=int(size or BLANK_BYTES))
    escapes = {r"\n": "\n", r"\f": "\f", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
    separator = re.sub(r"\\[nftr\\]", lambda match: escapes[match[0]], text)
    if not separator:
        raise UserError("documents: the separator is empty; use auto, file, page, blank:BYTES or some text")
    return Boundary(kind="separator", separator=separator.encode("utf-8", "surrogateescape"))


# ---------------------------------------------------------------------------------------------------------
# Files


def find_sources(
    paths: Sequence[Path], boundary: Boundary | None, text_field: str | None
) -> tuple[list[Source], list[str]]:
    """Return the sources behind ``paths`` (folders are read recursively) and a line for each file that is left out.

    Below a folder, names that start with a dot are passed over in silence; binary files, what accompanies text (a
    README, checksums, ``_SUCCESS``) and files that were read under another name are left out. A binary file that was
    named itself is an error.

    Args:
        text_field: where rows have their text, if the user has said so; plain text is an error then.

    Raises:
        UserError: a path that is missing, unreadable or of no supported kind.
    """
    sources: list[Source] = []
    skipped: list[str] = []
    read: dict[tuple[int, int], str] = {}

    def again(path: Path, label: str) -> bool:
        status = path.stat()
        first = read.setdefault((status.st_dev, status.st_ino), label)
        if first is not label:
            skipped.append(f"{label}: the same file as {first}")
        return first is not label

    for path in paths:
        if path.is_dir():
            for file in _walk(path):
                label = file.relative_to(path).as_posix()
                if _COMPANIONS.fullmatch(file.name):
                    skipped.append(f"{label}: by its name no text of the corpus; name it to have it")
                elif not again(file, label):
                    source = _inspect(file, label, boundary, text_field)
                    if source is None:
                        skipped.append(f"{label}: binary")
                    else:
                        sources.append(source)
            continue
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; sources are read twice, so a pipe will not do")
        if again(path, str(path)):
            continue
        source = _inspect(path, path.name, boundary, text_field)
        if source is None:
            raise UserError(f"{path}: binary (or UTF-16) content; give text, JSONL or Parquet")
        sources.append(source)
    return sources, skipped


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({os.strerror(error.errno or 0)})")

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and (Path(parent) / name).is_file():
                yield Path(parent) / name


def _inspect(path: Path, label: str, boundary: Boundary | None, text_field: str | None) -> Source | None:
    """Return the source in file ``path``, or None for binary content."""
    with _reading(path):
        with path.open("rb") as stream:
            magic = stream.read(8)
            n_bytes = os.fstat(stream.fileno()).st_size
        compression = next((name for start, name in _COMPRESSION if magic.startswith(start)), "")
        kind: SourceKind = "text"
        if magic.startswith(b"PAR1"):
            kind = "parquet"
        elif magic.startswith(b"PK\x03\x04"):
            raise UserError(f"{path}: a zip archive; unpack it and give the files inside")
        else:
            with _open(path, compression) as (stream, _):
                head = _head(stream)
            head = head.removeprefix(BOM)
            if b"\0" in head[:8192]:
                return None
            kind = _kind(path, head, text_field or DEFAULT_FIELD)
    if kind == "text":
        if text_field is not None:
            raise UserError(
                f"{path}: plain text, which has no field {text_field!r}; leave out --text-field, or give JSON Lines, "
                "CSV or Parquet"
            )
        boundary = boundary or recognise(head)
    return Source(
        path=path,
        label=label,
        kind=kind,
        compression=compression,
        n_bytes=n_bytes,
        boundary=boundary if kind == "text" else None,
    )


def recognise(head: bytes) -> Boundary:
    """Return the document boundaries of a plain text that begins with ``head``."""
    if re.search(rb"(?m)^[ \t]*<page>[ \t\r]*$", head):
        return Boundary(kind="page")
    if b"\f" in head:
        return Boundary(kind="separator", separator=b"\f")
    return Boundary(kind="blank")


def _kind(path: Path, head: bytes, text_field: str) -> SourceKind:
    """Return what a file holds that is neither binary nor Parquet, from its beginning and then its name.

    Raises:
        UserError: its name says JSON or CSV, and its content is neither.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    named = next((suffix for suffix in suffixes if suffix in _ROWS_SUFFIXES), "")
    line = head.lstrip().partition(b"\n")[0]
    whole = b"\n" in head.lstrip() or len(head) < HEAD_BYTES
    if named in (".jsonl", ".ndjson"):
        return "jsonl"
    if _JSON_OBJECT.match(head):
        if _value(line) is not None:
            return "jsonl"
        if named or not whole or _opens(line):
            return "jsonl" if not whole else "json"
    elif _JSON_ARRAY.match(head) and (named or not whole or _value(line) is not None or _opens(line)):
        return "json"
    if named:
        raise UserError(f"{path}: named {named}, but its content is no JSON object or array of rows")
    if any(suffix in _TABLE_SUFFIXES for suffix in suffixes) or _is_table(head, text_field):
        return "csv"
    return "text"


def _value(line: bytes) -> Any:
    """Return the object or array that a line holds, None for anything else."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    return found if isinstance(found, (dict, list)) else None


def _opens(line: bytes) -> bool:
    """Whether a line is the beginning of a JSON value that later lines go on with."""
    try:
        json.loads(line)
    except RecursionError:
        return True
    except json.JSONDecodeError as error:
        return error.pos >= len(line.decode("utf-8", "replace").rstrip())
    except ValueError:
        return False
    return True


def _is_table(head: bytes, text_field: str) -> bool:
    """Whether a text begins with a CSV header that has the field, and a row to it."""
    rows = head.split(b"\n", 2)
    if len(rows) < 2:
        return False
    for separator in (",", ";", "\t"):
        names = [name.strip().strip('"') for name in rows[0].decode("utf-8", "replace").split(separator)]
        if len(names) > 1 and text_field in names and all(re.fullmatch(r"[\w .-]{1,40}", n) for n in names):
            return rows[1].decode("utf-8", "replace").count(separator) >= len(names) - 1
    return False


def _head(stream: BinaryIO) -> bytes:
    head = b""
    while len(head) < HEAD_BYTES and (chunk := stream.read(HEAD_BYTES - len(head))):
        head += chunk
    return head


@contextlib.contextmanager
def _open(path: Path, compression: str) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """Yield the decompressed stream of a file, and a function that tells how much of the file was read.

    Truncated or damaged compressed data raises OSError, EOFError or LZMAError where it is met.
    """
    with contextlib.ExitStack() as stack:
        if compression != "zstd":
            raw = stack.enter_context(path.open("rb"))
            openers: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "xz": lzma.open, "bz2": bz2.open}
            packed = _Unpadded(raw) if compression == "xz" else raw
            stream: Any = stack.enter_context(openers[compression](packed)) if compression else raw
            position = raw.tell
        else:
            import pyarrow as pa

            file = stack.enter_context(pa.OSFile(str(path)))
            stream = io.BufferedReader(pa.CompressedInputStream(file, compression), CHUNK_BYTES)
            stream, position = stack.enter_context(stream), file.tell
        if compression:
            stream = io.BufferedReader(_Guarded(path, stream), CHUNK_BYTES)
        yield stream, position


class _Unpadded(io.RawIOBase):
    """A file without the zeros at its end: the xz format allows them, as tapes pad their blocks, and lzma does not."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, file.seek(0, io.SEEK_END)
        while self._left:
            start = max(0, self._left - CHUNK_BYTES)
            file.seek(start)
            kept = len(file.read(self._left - start).rstrip(b"\0"))
            self._left = start + kept
            if kept:
                break
        file.seek(0)

    def readable(self) -> bool:
        """As a raw stream has to say."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into ``buffer``."""
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Guarded(io.RawIOBase):
    """A decompressed stream that ends in an error when it is out of all proportion to its file."""

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream, self._n_bytes = path, stream, 0
        self._most = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        """As a raw stream has to say."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into ``buffer``."""
        data = self._stream.read(len(buffer))
        self._n_bytes += len(data)
        if self._n_bytes > self._most:
            raise UserError(
                f"{self._path}: becomes more than {BOMB_RATIO} times as long when decompressed, as no text does; if it "
                "is meant to, give it decompressed"
            )
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever reading ``path`` can raise into a UserError that names it."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: cannot be read ({' '.join(reason.split())})") from error


# ---------------------------------------------------------------------------------------------------------
# Documents


@dataclass(kw_only=True, slots=True)
class Rows:
    """Rows that gave no document."""

    null: int = 0
    empty: int = 0
    headers: int = 0
    """First rows without the field, in files whose second row has it."""


def read_documents(
    source: Source, text_field: str, advance: Advance, rows: Rows | None = None
) -> Iterator[bytes]:
    """Yield the documents of a source in order, never an empty one.

    Args:
        rows: counts those without text.

    Raises:
        UserError: damaged data, a row that is no JSON object, a text field that is missing or not text.
    """
    if source.kind == "text":
        assert source.boundary is not None
        return split(_chunks(source, advance), source.boundary)
    rows = rows if rows is not None else Rows()
    match source.kind:
        case "parquet":
            found = _parquet_rows(source, text_field, advance)
        case "csv":
            found = _csv_rows(source, text_field, advance)
        case "json":
            found = _texts(source, _json_values(source), text_field, rows)
        case _:
            found = _texts(source, _json_lines(source, advance), text_field, rows)
    return (piece for row in _counted(found, rows) for piece in split((row,), Boundary(kind="file")))


def _counted(found: Iterable[bytes | None], rows: Rows) -> Iterator[bytes]:
    """Yield the rows that hold text, and count the others."""
    for row in found:
        if row is None:
            rows.null += 1
        elif not row:
            rows.empty += 1
        else:
            yield row


def split(chunks: Iterable[bytes], boundary: Boundary) -> Iterator[bytes]:
    """Yield the documents of a text that comes in ``chunks``; the result does not depend on their sizes.

    Apart from separators and empty documents nothing is lost: the documents together are the text.
    """
    buffer, start = b"", 0
    for chunk in chunks:
        buffer, start = buffer[start:] + chunk, 0
        # A boundary is looked for only once its whole window is here, so that chunking cannot matter.
        while len(buffer) - start > boundary.window:
            end, following = _cut(buffer, start, boundary)
            if end > start:
                yield buffer[start:end]
            start = following
    while start < len(buffer):
        end, following = _cut(buffer, start, boundary)
        if end > start:
            yield buffer[start:end]
        start = following


def _cut(buffer: bytes, start: int, boundary: Boundary) -> tuple[int, int]:
    """Return where the document that begins at ``start`` ends, and where the next one begins."""
    limit = start + boundary.window
    match boundary.kind:
        case "page":
            found = start
            while (found := buffer.find(b"<page>", found + 1, limit)) >= 0:
                line = buffer.rfind(b"\n", start, found) + 1
                if line > start and not buffer[line:found].strip(b" \t"):
                    return line, line
        case "blank":
            if match := _BLANK_LINES.search(buffer, start + boundary.min_bytes, limit):
                return match.end(), match.end()
        case "separator":
            if (found := buffer.find(boundary.separator, start, limit)) >= 0:
                return found, found + len(boundary.separator)
    if limit >= len(buffer):
        return len(buffer), len(buffer)
    end = buffer.rfind(b"\n", start, limit) + 1
    if end <= start:
        end = limit
        for _ in range(3):  # not inside a UTF-8 sequence
            end -= buffer[end] & 0xC0 == 0x80
    return end, end


def _chunks(source: Source, advance: Advance) -> Iterator[bytes]:
    with _reading(source.path), _open(source.path, source.compression) as (stream, position):
        first = True
        while chunk := stream.read(CHUNK_BYTES):
            advance(position())
            yield chunk.removeprefix(BOM) if first else chunk
            first = False


def _json_lines(source: Source, advance: Advance) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) of every line that is not blank."""
    with _reading(source.path), _open(source.path, source.compression) as (stream, position):
        number, told = 0, 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            told += len(line)
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{source.path}:{number}: a row of more than {MAX_LINE_BYTES >> 20} MiB")
            if told > CHUNK_BYTES:
                advance(position())
                told = 0
            if number == 1:
                line = line.removeprefix(BOM)
            if not line.strip():
                continue
            try:
                yield f"{source.path}:{number}", parse_json(line)
            except ValueError as error:
                raise UserError(f"{source.path}:{number}: not a JSON row ({error})") from None


def _json_values(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) of a file of JSON that is not a row a line: an array, an object with one, objects in turn."""
    with _reading(source.path), _open(source.path, source.compression) as (stream, _):
        content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UserError(
            f"{source.path}: JSON of more than {MAX_JSON_BYTES >> 20} MiB in one piece; make rows of it, as with "
            f"jq -c '.[]' {source.path.name} > rows.jsonl"
        )
    text = content.decode("utf-8-sig", "replace")
    del content
    decoder, at = json.JSONDecoder(), 0
    number = 0
    while (at := _skip_space(text, at)) < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source.path}: not JSON ({error}), though it begins like it") from None
        for row in value if isinstance(value, list) else [value]:
            number += 1
            yield f"{source.path}, row {number}", row


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


_SPACE = re.compile(r"[\s,]*")


def _rows_of(value: Any) -> Iterable[Any]:
    """Return the rows of an object in which one field alone is an array of rows; else the value."""
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(lists) == 1:
            return lists[0]
    return [value]


def _texts(
    source: Source, values: Iterable[tuple[str, Any]], text_field: str, rows: Rows
) -> Iterator[bytes | None]:
    """Yield the text of every row, None for null."""
    header: UserError | None = None
    for i, (where, row) in enumerate(_unwrapped(values, text_field)):
        if isinstance(row, str) and source.kind == "json":
            yield row.encode("utf-8", "replace")
            continue
        if row is None:
            yield None
            continue
        if not isinstance(row, dict):
            raise UserError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
        if text_field not in row:
            missing = UserError(
                f"{where}: no field {text_field!r}{nearest(text_field, row)}; choose the text with --text-field"
            )
            if i:
                raise header or missing
            header = missing  # perhaps what the file says of itself
            continue
        if header is not None:
            header = None
            rows.headers += 1
        text = row[text_field]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: field {text_field!r} is not text")
        yield None if text is None else text.encode("utf-8", "replace")
    if header is not None:
        raise header


def _unwrapped(values: Iterable[tuple[str, Any]], text_field: str) -> Iterator[tuple[str, Any]]:
    """Yield the values; of an object without the field that holds the rows, those."""
    for where, value in values:
        if isinstance(value, dict) and text_field not in value and (rows := _rows_of(value)) != [value]:
            for number, row in enumerate(rows, 1):
                yield f"{where}, row {number}", row
        else:
            yield where, value


def _csv_rows(source: Source, text_field: str, advance: Advance) -> Iterator[bytes]:
    """Yield the text of every row of a CSV file with a header."""
    with _reading(source.path), _open(source.path, source.compression) as (stream, position):
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        first = lines.readline(MAX_LINE_BYTES)
        separator = max(",;\t", key=first.count)
        names = next(csv.reader([first], delimiter=separator), [])
        if names.count(text_field) != 1:
            said = "has several columns" if text_field in names else "has no column"
            hint = "" if text_field in names else nearest(text_field, names)
            raise UserError(
                f"{source.path}: a CSV header that {said} {text_field!r}{hint}; choose the text with --text-field"
            )
        column = names.index(text_field)
        before = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            for number, row in enumerate(csv.reader(lines, delimiter=separator), 2):
                if len(row) != len(names):
                    if not row:
                        continue
                    raise UserError(
                        f"{source.path}, row {number}: {len(row)} cells, and the header has {len(names)}"
                    )
                if number % PARQUET_ROWS == 0:
                    advance(position())
                yield row[column].encode("utf-8", "replace")
        except csv.Error as error:
            raise UserError(f"{source.path}: not a readable CSV file ({error})") from None
        finally:
            csv.field_size_limit(before)


def _parquet_rows(source: Source, text_field: str, advance: Advance) -> Iterator[bytes | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(source.path):
        try:
            with pq.ParquetFile(source.path, pre_buffer=False) as file:
                schema, done = file.schema_arrow, 0
                if text_field not in schema.names:
                    raise UserError(
                        f"{source.path}: no column {text_field!r}{nearest(text_field, schema.names)}; "
                        "choose the text with --text-field"
                    )
                if schema.names.count(text_field) > 1:
                    raise UserError(
                        f"{source.path}: {schema.names.count(text_field)} columns {text_field!r}; rename all but one"
                    )
                kind = schema.field(text_field).type
                kind = kind.value_type if pa.types.is_dictionary(kind) else kind
                if not (
                    pa.types.is_string(kind)
                    or pa.types.is_large_string(kind)
                    or pa.types.is_string_view(kind)
                ):
                    raise UserError(f"{source.path}: column {text_field!r} holds {kind}, not text")
                batches = file.iter_batches(PARQUET_ROWS, columns=[text_field], use_threads=False)
                for batch in batches:
                    column = batch.column(0)
                    if pa.types.is_dictionary(column.type):
                        column = column.dictionary_decode()
                    yield from column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
                    done += len(batch)
                    advance(source.n_bytes * done // max(1, file.metadata.num_rows))
        except pa.ArrowException as error:
            raise UserError(f"{source.path}: not a readable Parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
