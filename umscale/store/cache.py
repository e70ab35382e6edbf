"""Reading tables of many small files at the speed of one: rows already read are kept in a single file beside them.

``work/scan/<table>.parquet`` holds the rows of many files and, in its footer, which version of each they come from. A
reader lists the table's folder, takes the rows of files that are unchanged from there and reads only the others. The
files themselves stay what counts: the copy may be removed, damaged or out of date at any time, and nothing is lost.

``<table>/packed.parquet``, which ``Store.pack`` writes, is no copy: it stands for the files whose names its footer
holds. A file of its own beside it is newer and wins, so a packed store is written to like any other.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from umscale.errors import UserError
from umscale.escape import plain
from umscale.files import Entry, Files, Unusable
from umscale.store.schema import Damaged, from_parquet, schema, to_parquet
from umscale.trees import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

MANY_FILES = 200
"""A scan that read this many files one by one leaves a copy of the rows for the next."""
BATCH_FILES = 512
THREADS = 8
SUFFIX = ".parquet"
PACKED = "packed"
"""Name of the file that stands for many; no run has it, as ids are hexadecimal."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Copy:
    """What an earlier scan left: rows, and by file the version they come from and where they are."""

    rows: "pa.Table | None" = None
    sources: dict[str, tuple[str, range]] = field(default_factory=dict)

    def fresh(self, entries: Iterable[Entry]) -> dict[str, range]:
        """Return where the rows of unchanged files are, in order."""
        found = ((entry.name, self.sources.get(entry.name, ("", range(0)))) for entry in entries)
        versions = {entry.name: entry.version for entry in entries}
        return {name: rows for name, (version, rows) in found if version == versions[name]}


class Scanner:
    """Reads the tables of a store."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.damaged: list[str] = []
        """Files that the last ``read`` left out."""
        self._statuses: dict[str, tuple[str, str | None]] = {}
        """Version and status of each file of ``runs``."""
        self._packs: dict[str, tuple[str, _Copy]] = {}
        """Version and content of each table's packed file."""

    def read(self, table: str) -> "pa.Table":
        """Return a whole table, in the order of its files' names."""
        import pyarrow as pa

        self.damaged = []
        entries = self._entries(table)
        copy = self._copy(table)
        fresh = copy.fresh(entries)
        packed = self.packed(table)
        read = self._tables(table, [entry.name for entry in entries if entry.name not in fresh])
        parts: list[tuple[pa.Table, range]] = []
        kept: list[tuple[Entry, int]] = []
        own = {entry.name: entry for entry in entries}
        if any(name not in read and name not in fresh for name in own):
            packed = self.packed(table)  # some were packed since they were listed
        for name in sorted({*own, *packed.sources}):
            found = read.get(name)
            if found is None and name in fresh and copy.rows is not None:
                found = copy.rows, fresh[name]
            elif found is not None or name in fresh:
                pass
            elif name in packed.sources and packed.rows is not None:
                found = packed.rows, packed.sources[name][1]
            if found is None:
                continue
            whole, rows = found
            if name in read or name in fresh:
                kept.append((own[name], len(rows)))
            if parts and parts[-1][0] is whole and parts[-1][1].stop == rows.start:
                parts[-1] = whole, range(parts[-1][1].start, rows.stop)
            else:
                parts.append(found)
        pieces = [whole.slice(rows.start, len(rows)) for whole, rows in parts]
        data = pa.concat_tables(pieces).combine_chunks() if pieces else schema(table).empty_table()
        if len(read) >= MANY_FILES:
            self._keep(table, data, kept)
        return _shown(data)

    def status(self, run_id: str) -> str | None:
        """Return a run's status, None when nothing (readable) is stored about it."""
        try:
            return _status(self.files.read(f"runs/{run_id}{SUFFIX}"))
        except FileNotFoundError:
            return self._packed_statuses().get(run_id)
        except (OSError, Damaged, Unusable):
            return None

    def statuses(self) -> dict[str, str]:
        """Return the status of every run with a readable file."""
        import pyarrow as pa

        entries = self._entries("runs")
        if not self._statuses:
            copy = self._copy("statuses")
            if copy.rows is not None:
                column = copy.rows["status"].to_pylist()
                self._statuses = {
                    name: (version, column[at.start]) for name, (version, at) in copy.sources.items()
                }
        known = self._statuses
        missing = [entry.name for entry in entries if known.get(entry.name, ("",))[0] != entry.version]
        read = self._load("runs", missing, _status)
        self._statuses = {}
        found = self._packed_statuses()
        kept = []
        for entry in entries:
            status = read[entry.name] if entry.name in read else known.get(entry.name, ("", None))[1]
            if status is None:
                continue
            found[entry.name] = status
            if entry.settled:
                self._statuses[entry.name] = entry.version, status
                kept.append((entry, 1))
        if len(read) >= MANY_FILES:
            rows = {
                "run_id": [entry.name for entry, _ in kept],
                "status": [found[entry.name] for entry, _ in kept],
            }
            self._keep("statuses", pa.table(rows), kept)
        return found

    def packed(self, table: str) -> _Copy:
        """Return what a table's packed file holds; nothing where there is none. A damaged one is noted."""
        entries = [e for e in self.files.entries(table) if e.name == PACKED + SUFFIX]
        if not entries:
            return _Copy()
        if entries[0].version != self._packs.get(table, ("",))[0]:
            path = f"{table}/{PACKED}{SUFFIX}"
            try:
                rows, notes = from_parquet(self.files.read(path), schema(table))
                found = _sources(rows, notes)
            except (OSError, Damaged, Unusable, KeyError, ValueError, TypeError):
                self.damaged.append(self.files.describe(path))
                return _Copy()
            self._packs[table] = entries[0].version, found
        return self._packs[table][1]

    def pack(self, table: str, without: str = "") -> list[str]:
        """Write all rows of a table into its packed file; returns the files that it stands for, unchanged since.

        Args:
            without: name of a file whose rows are left out.

        Raises:
            UserError: a file is damaged.
        """
        import pyarrow as pa

        before = {entry.name: entry.version for entry in self._entries(table)}
        data, sources = schema(table).empty_table(), []
        packed = self.packed(table)
        own = self._tables(table, list(before))
        pieces = []
        for name in sorted({*before, *packed.sources} - {without}):
            found = own.get(name)
            if found is None and packed.rows is not None and name in packed.sources:
                found = packed.rows, packed.sources[name][1]
            if found is not None:
                pieces.append(found[0].slice(found[1].start, len(found[1])))
                sources.append([name, "", len(found[1])])
        if self.damaged:
            raise UserError(f"damaged, so nothing is packed: {', '.join(self.damaged)}")
        data = pa.concat_tables(pieces).combine_chunks() if pieces else data
        self.files.write(f"{table}/{PACKED}{SUFFIX}", to_parquet(data, {"sources": json.dumps(sources)}))
        after = {entry.name: entry.version for entry in self._entries(table)}
        return [name for name in own if after.get(name) == before[name]]

    def unpacked(self, table: str) -> list[str]:
        """Return the names of a table's own files."""
        return [entry.name for entry in self._entries(table)]

    def _packed_statuses(self) -> dict[str, str]:
        packed = self.packed("runs")
        if packed.rows is None:
            return {}
        column = packed.rows["status"].to_pylist()
        return {name: column[at.start] for name, (_, at) in packed.sources.items() if len(at)}

    def unverified(self, table: str) -> list[str]:
        """Return the files of a table that no earlier scan has read as they are now."""
        entries = self._entries(table)
        fresh = self._copy(table).fresh(entries)
        return [entry.name for entry in entries if entry.name not in fresh]

    def _entries(self, table: str) -> list[Entry]:
        """Return a table's files, their names without the suffix."""
        found = self.files.entries(table)
        return [
            Entry(entry.name.removesuffix(SUFFIX), entry.version, entry.settled)
            for entry in found
            if entry.name.endswith(SUFFIX) and entry.name != PACKED + SUFFIX
        ]

    def _tables(self, table: str, names: Sequence[str]) -> "dict[str, tuple[pa.Table, range]]":
        """Read files, many into one Arrow table: alone, a table of a few rows takes a hundred times its size."""
        import pyarrow as pa

        wanted = schema(table)
        found: dict[str, tuple[pa.Table, range]] = {}
        for first in range(0, len(names), BATCH_FILES):
            some = names[first : first + BATCH_FILES]
            loaded = self._load(table, some, lambda content: from_parquet(content, wanted)[0])
            if loaded:
                whole, start = pa.concat_tables(loaded.values()).combine_chunks(), 0
                for name, rows in loaded.items():
                    found[name] = whole, range(start, start + len(rows))
                    start += len(rows)
        return found

    def _load(self, table: str, names: Sequence[str], parse: Callable[[bytes], T]) -> dict[str, T]:
        """Read files side by side; damaged ones are noted, and those removed meanwhile left out."""

        def load(name: str) -> T | Damaged | None:
            try:
                return parse(self.files.read(f"{table}/{name}{SUFFIX}"))
            except FileNotFoundError:
                return None
            except Unusable as error:
                return Damaged(str(error))
            except Damaged as error:
                return error

        if len(names) <= 1:
            results = [load(name) for name in names]
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                results = list(pool.map(load, names))
        found: dict[str, T] = {}
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Damaged):
                self.damaged.append(self.files.describe(f"{table}/{name}{SUFFIX}"))
            elif result is not None:
                found[name] = result
        return found

    def _copy(self, table: str) -> _Copy:
        """Return what an earlier scan left; nothing if that is missing or cannot be used."""
        import pyarrow as pa

        wanted = (
            pa.schema([("run_id", pa.string()), ("status", pa.string())])
            if table == "statuses"
            else schema(table)
        )
        try:
            rows, notes = from_parquet(self.files.read(_copy_name(table)), wanted)
            return _sources(rows, notes)
        except (OSError, UserError, Damaged, KeyError, ValueError, TypeError):
            return _Copy()

    def _keep(self, table: str, data: "pa.Table", kept: Sequence[tuple[Entry, int]]) -> None:
        """Leave a copy of ``data`` for later scans, where that is possible; ``kept`` says whose rows it holds."""
        import numpy as np

        settled = np.array([entry.settled for entry, _ in kept])
        if not settled.all():
            data = data.filter(np.repeat(settled, [count for _, count in kept]))
        sources = [[entry.name, entry.version, count] for entry, count in kept if entry.settled]
        with contextlib.suppress(OSError, UserError):  # a store one may only read
            content = to_parquet(data, {"sources": json.dumps(sources)}, compression="lz4")
            self.files.write(_copy_name(table), content, durable=False)


def _sources(rows: "pa.Table", notes: Mapping[str, str]) -> _Copy:
    """Read whose rows a file holds from its footer; raises ``ValueError`` where that does not fit them."""
    sources, start = {}, 0
    for name, version, count in parse_json(notes["sources"]):
        sources[str(name)] = str(version), range(start, start + int(count))
        start += int(count)
    if start != len(rows):
        raise ValueError("the footer names other rows than there are")
    return _Copy(rows, sources)


def _shown(data: "pa.Table") -> "pa.Table":
    """Return a table whose texts may be shown anywhere: terminals, pages, figures; specifications stay as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for i, column in enumerate(data.schema):
        if not pa.types.is_string(column.type) or column.name == "spec":
            continue
        if pc.any(pc.match_substring_regex(data.column(i), r"[\p{C}\p{Zl}\p{Zp}]")).as_py():
            texts = [None if text is None else plain(text) for text in data.column(i).to_pylist()]
            data = data.set_column(i, column, pa.array(texts, pa.string()))
    return data


def _copy_name(table: str) -> str:
    return f"work/scan/{table}{SUFFIX}"


def _status(content: bytes) -> str | None:
    rows, _ = from_parquet(content, schema("runs"), ["status"])
    status = rows["status"][0].as_py() if len(rows) else None
    return None if status is None else str(status)
