"""Scalars of TensorBoard event files, read without TensorBoard.

A file is a sequence of records: length (uint64), a checksum of it, content, a checksum of that. The content is a
protocol buffer ``Event`` {2: step, 5: summary {1: value {1: tag, 2: simple_value, 8: tensor {1: type, 5: float_val,
4: content}}}}; of it these fields are read, and everything else is passed over.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from umscale.errors import UserError

LONGEST_RECORD = 1 << 26
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DT_FLOAT, _DT_DOUBLE = 1, 2

Scalars = dict[str, list[tuple[int, float]]]
"""Tag → (step, value), in the order of the file."""


def event_files(folder: Path) -> list[Path]:
    """Return the event files below a folder."""
    return sorted(path for path in folder.rglob("*tfevents*") if path.is_file())


def read_scalars(path: Path) -> Scalars:
    """Return the scalars of an event file; one that was cut short gives what is whole.

    Raises:
        UserError: it is no event file.
    """
    found: Scalars = {}
    try:
        with path.open("rb") as stream:
            while len(head := stream.read(12)) == 12:
                (length,) = struct.unpack("<Q", head[:8])
                if length > LONGEST_RECORD:
                    raise ValueError(f"a record of {length} bytes")
                content = stream.read(length)
                if len(content) < length or len(stream.read(4)) < 4:
                    break
                _take(content, found)
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path}: no event file of TensorBoard ({error})") from None
    return found


def _take(content: bytes, found: Scalars) -> None:
    step = 0
    summaries = []
    for number, value in _fields(content):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and isinstance(value, bytes):
                tag, scalar = _scalar(value)
                if tag and math.isfinite(scalar):
                    found.setdefault(tag, []).append((step, scalar))


def _scalar(content: bytes) -> tuple[str, float]:
    tag, scalar = "", math.nan
    for number, value in _fields(content):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode(errors="replace")
        elif number == 2 and isinstance(value, float):
            scalar = value
        elif number == 8 and isinstance(value, bytes):
            scalar = _tensor(value)
    return tag, scalar


def _tensor(content: bytes) -> float:
    """Return the value of a tensor of one number; NaN for any other."""
    kind = 0
    for number, value in _fields(content):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 5:
            packed = struct.pack("<f", value) if isinstance(value, float) else value
            if isinstance(packed, bytes) and len(packed) == 4:
                return float(struct.unpack("<f", packed)[0])
        elif number == 4 and isinstance(value, bytes) and kind in (_DT_FLOAT, _DT_DOUBLE):
            form = "<f" if kind == _DT_FLOAT else "<d"
            if len(value) == struct.calcsize(form):
                return float(struct.unpack(form, value)[0])
    return math.nan


def _fields(content: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield (number, value) of a protocol buffer's fields; raises ``ValueError`` for anything else."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        value: int | float | bytes
        if kind == _VARINT:
            value, at = _varint(content, at)
        elif kind == _FIXED64:
            value, at = struct.unpack_from("<d", content, at)[0], at + 8
        elif kind == _FIXED32:
            value, at = struct.unpack_from("<f", content, at)[0], at + 4
        elif kind == _BYTES:
            length, at = _varint(content, at)
            if at + length > len(content):
                raise ValueError("a field that is longer than its record")
            value, at = content[at : at + length], at + length
        else:
            raise ValueError(f"a field of kind {kind}")
        yield key >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
