"""From files to documents: what a source is, and where its documents begin and end.

A document is a byte string. Sources are read as streams of bounded chunks, so memory does not depend on their
size; no document exceeds ``MAX_DOCUMENT_BYTES`` (a longer one is cut at a line end).
"""

import contextlib
import io
import json
import lzma
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from umscale.errors import UserError, nearest

CHUNK_BYTES = 4 << 20
HEAD_BYTES = 1 << 20
"""How much of a file its kind and its document boundaries are recognised from."""
MAX_DOCUMENT_BYTES = 8 << 20
MAX_LINE_BYTES = 64 << 20
"""Longest JSONL row that is accepted."""
BLANK_BYTES = 8 << 10
PARQUET_ROWS = 256

SourceKind = Literal["text", "jsonl", "parquet"]
Advance = Callable[[int], None]
"""Told how many bytes of the current source have been read."""

_COMPRESSION = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
)
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
    paths: Sequence[Path], boundary: Boundary | None, text_field: str
) -> tuple[list[Source], list[str]]:
    """Return the sources behind ``paths`` (folders are read recursively) and the names of files passed over.

    Below a folder, names that start with a dot are left out, and binary files are passed over; a binary file
    that was named itself is an error.

    Raises:
        UserError: a path that is missing, unreadable or of no supported kind.
    """
    sources: list[Source] = []
    skipped: list[str] = []
    for path in paths:
        if path.is_dir():
            for file in _walk(path):
                label = file.relative_to(path).as_posix()
                source = _inspect(file, label, boundary, text_field)
                if source is None:
                    skipped.append(label)
                else:
                    sources.append(source)
            continue
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; sources are read twice, so a pipe will not do")
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


def _inspect(path: Path, label: str, boundary: Boundary | None, text_field: str) -> Source | None:
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
            if _is_jsonl(path, head, text_field):
                kind = "jsonl"
            elif b"\0" in head[:8192]:
                return None
    if kind == "text":
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


def _is_jsonl(path: Path, head: bytes, text_field: str) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if ".jsonl" in suffixes or ".ndjson" in suffixes:
        return True
    line = head.partition(b"\n")[0]
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and text_field in row


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
        if compression in ("", "xz"):
            raw = stack.enter_context(path.open("rb"))
            yield (stack.enter_context(lzma.open(raw)) if compression else raw), raw.tell  # type: ignore[misc]
        else:
            import pyarrow as pa

            file = stack.enter_context(pa.OSFile(str(path)))
            stream: Any = io.BufferedReader(pa.CompressedInputStream(file, compression), CHUNK_BYTES)
            yield stack.enter_context(stream), file.tell


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever reading ``path`` can raise into a UserError that names it."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: cannot be read ({' '.join(reason.split())})") from error


# ---------------------------------------------------------------------------------------------------------
# Documents


def read_documents(source: Source, text_field: str, advance: Advance) -> Iterator[bytes]:
    """Yield the documents of a source in order, never an empty one.

    Raises:
        UserError: damaged data, a row that is no JSON object, a text field that is missing or not text.
    """
    if source.kind == "parquet":
        documents = _parquet_rows(source, text_field, advance)
    elif source.kind == "jsonl":
        documents = _jsonl_rows(source, text_field, advance)
    else:
        assert source.boundary is not None
        return split(_chunks(source, advance), source.boundary)
    return (piece for row in documents for piece in split((row,), Boundary(kind="file")))


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
        while chunk := stream.read(CHUNK_BYTES):
            advance(position())
            yield chunk


def _jsonl_rows(source: Source, text_field: str, advance: Advance) -> Iterator[bytes]:
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
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source.path}:{number}: not a JSON row ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{source.path}:{number}: a row must be a JSON object")
            if text_field not in row:
                raise UserError(
                    f"{source.path}:{number}: no field {text_field!r}{nearest(text_field, row)}; "
                    "choose the text with --text-field"
                )
            text = row[text_field]
            if text is None:
                continue
            if not isinstance(text, str):
                raise UserError(f"{source.path}:{number}: field {text_field!r} is not text")
            yield text.encode("utf-8", "replace")


def _parquet_rows(source: Source, text_field: str, advance: Advance) -> Iterator[bytes]:
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
                    for row in column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
                        if row is not None:
                            yield row
                    done += len(batch)
                    advance(source.n_bytes * done // max(1, file.metadata.num_rows))
        except pa.ArrowException as error:
            raise UserError(f"{source.path}: not a readable Parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
