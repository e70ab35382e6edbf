"""Results of runs that umscale did not train, as a store: so that verdicts, laws and plans work on them.

A row a run and budget. What a store has no column for is left out, and named.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from umscale.errors import UserError, nearest
from umscale.results.columns import COLUMNS
from umscale.results.events import event_files, read_scalars
from umscale.results.source import ROW, is_table, read_table, rows_and_columns
from umscale.results.table import Table, n_rows, numeric, text
from umscale.store.schema import SPEC_COLUMNS, STAGES, TABLES
from umscale.store.store import Row, Store

KERNELS = "imported"
"""What such a record says of its kernels."""
_OURS = ("study", "status", "reason", "spec", "kernels", "versions", "written_at")
_RESULTS = {n for n in TABLES["runs"] if n not in SPEC_COLUMNS}
_WORD = re.compile(r"([A-Za-z_][A-Za-z_0-9.]*)=([^=,\s/]+)")
_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What was taken over."""

    runs: int
    records: int
    without_loss: int
    """Rows that are ``failed`` in the store, for want of a loss."""
    columns: tuple[str, ...]
    """That the store now holds of them."""
    left_out: tuple[str, ...]
    """Columns of the table that a store does not have."""


def read_source(source: Path) -> Table:
    """Return a table of runs: from CSV (as Weights & Biases exports it), Parquet, JSON Lines, or TensorBoard's folder.

    Of event files every folder is a run: a column a tag with its last value, ``step``, and a column for every
    ``NAME=VALUE`` in the folder's path below ``source``.

    Raises:
        UserError: it is none of these.
    """
    if source.is_dir():
        return _events(source)
    if not is_table(source):
        raise UserError(
            f"{source}: a table (.csv, .tsv, .parquet, .jsonl) or a folder of TensorBoard event files"
        )
    return read_table(source)


def _events(folder: Path) -> Table:
    files = event_files(folder)
    if not files:
        raise UserError(f"{folder} holds no event files of TensorBoard")
    runs: dict[Path, dict[str, Any]] = {}
    for path in files:
        where = path.parent.relative_to(folder)
        row = runs.setdefault(where, {"run_id": str(where), **dict(_WORD.findall(str(where)))})
        for tag, points in read_scalars(path).items():
            step, value = max(points, key=lambda point: point[0])
            row[tag] = value
            row["step"] = max(step, row.get("step", 0))
    names = dict.fromkeys(name for row in runs.values() for name in row)
    return {name: np.array([row.get(name) for row in runs.values()], dtype=object) for name in names}


def import_runs(
    store: Store, table: Table, mapping: Mapping[str, str], *, study: str, where: str | None = None
) -> Imported:
    """Write the rows of a table into a store.

    Args:
        mapping: column of a store, or symbol of a law, → column of the table, or a formula of columns.
        study: name that the rows bear.
        where: rows to keep.

    Raises:
        UserError: no ``loss``, no ``budget`` or ``tokens``, text where numbers belong, two rows of one record.
    """
    mapped, columns = rows_and_columns(table, where, {COLUMNS.get(k, k): v for k, v in mapping.items()})
    known = [name for name in TABLES["runs"] if name not in _OURS and TABLES["runs"][name] != "F"]
    for name in mapping:
        if COLUMNS.get(name, name) not in known:
            raise UserError(f"--map {name}: a store has no such column{nearest(name, known)}")
    held = {name: columns.get(name, name) for name in known if columns.get(name, name) in mapped}
    if "loss" not in held:
        raise UserError(
            f"say which column holds the loss, in nats per token: --map loss=COLUMN{nearest('loss', mapped)}"
        )
    if "budget" not in held and "tokens" not in held:
        raise UserError("say which column holds the training tokens: --map tokens=COLUMN")
    rows = _rows(mapped, held)
    of_run: dict[str, list[Row]] = {}
    for row in rows:
        of_run.setdefault(row["run_id"], []).append(row | {"study": study, "kernels": KERNELS})
    for run_id, some in of_run.items():
        keys = {(row["budget"], row["stage"]) for row in some}
        if len(keys) < len(some):
            raise UserError(
                f"{len(some)} rows are of one run, {_label(some[0], _varied(rows))}, and {len(keys)} budgets and "
                "stages; --map seed=COLUMN or run_id=COLUMN tells them apart"
            )
        if any(row["status"] == "failed" for row in some):
            of_run[run_id] = [row | {"status": "failed"} for row in some]
    varied = _varied(rows)
    for run_id, some in of_run.items():
        store.write_rows("runs", run_id, some)
    cells = [
        {"run_id": run_id, "study": study, "label": _label(some[0], varied), "compensation": "none",
         "seed": some[0]["seed"], "targets": json.dumps({n: some[0][n] for n in varied}), "wanted": "{}",
         "achieved": "{}", "reason": ""}
        for run_id, some in of_run.items()
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:16]
    store.write_rows("cells", digest, cells)
    used = {held[name] for name in held}
    return Imported(
        runs=len(of_run),
        records=len(rows),
        without_loss=sum(row["status"] == "failed" for row in rows),
        columns=tuple(held),
        left_out=tuple(sorted(set(table) - used - {ROW})),
    )


def _rows(table: Table, held: Mapping[str, str]) -> list[Row]:
    """Return the table's rows with a store's columns, each with a run's id, budget, stage, seed and status."""
    cells: dict[str, list[Any]] = {}
    for name, column in held.items():
        if TABLES["runs"][name] == "s":
            cells[name] = [value or None for value in text(table, column).tolist()]
            continue
        values = numeric({column: table[column]}, column)
        whole = TABLES["runs"][name] == "i"
        if whole and any(math.isfinite(v) and v != round(v) for v in values):
            raise UserError(f"column {column!r} must hold whole numbers for {name}")
        cells[name] = [None if not math.isfinite(v) else int(v) if whole else float(v) for v in values]
    rows = []
    for i in range(n_rows(table)):
        row: Row = {name: values[i] for name, values in cells.items()}
        row["budget"] = row.get("budget") or row.get("tokens")
        row["tokens"] = row.get("tokens") or row["budget"]
        if not row["budget"]:
            raise UserError(f"row {i + 1} has no training tokens")
        row["stage"] = row.get("stage") or "annealed"
        if row["stage"] not in STAGES:
            raise UserError(f"row {i + 1}: stage {row['stage']!r} must be {' or '.join(STAGES)}")
        row["seed"] = row.get("seed") or 0
        missing = row["loss"] is None
        row |= {
            "status": "failed" if missing else "finished",
            "reason": "no loss in the table" if missing else "",
        }
        row["run_id"] = _run_id(row)
        rows.append(row)
    return rows


def _run_id(row: Row) -> str:
    """Return the id that a run has in the store: its own if that is one, else a hash of it or of its dimensions."""
    given = row.get("run_id")
    if given and _ID.fullmatch(given):
        return str(given)
    own = {
        k: v for k, v in row.items() if k not in _RESULTS and k not in ("run_id", "budget", "stage", *_OURS)
    }
    told = json.dumps(["imported", given or own], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _varied(rows: Sequence[Row]) -> list[str]:
    names = [
        n for n in SPEC_COLUMNS if n not in ("run_id", "budget", "stage", "seed", *_OURS) and n in rows[0]
    ]
    return [name for name in names if len({row[name] for row in rows}) > 1]


def _label(row: Row, varied: Sequence[str]) -> str:
    return " ".join([*(f"{name}={row[name]}" for name in varied), f"seed={row['seed']}"])
