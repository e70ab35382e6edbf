"""The results store: a folder of Parquet files that any number of processes write and anything reads.

    STORE/
      store.json               format version, pinned precision
      study.toml               the study that was last run here
      cells/<id>.parquet       a design: a row per cell, with its targets and its run
      runs/<run_id>.parquet    a row per (run, budget, stage)
      documents/<run_id>.parquet   a row per (run, budget, stage, validation document)
      curves/<run_id>.parquet  training loss along trunk and branches
      work/                    claims, checkpoints and logs of runs in progress

Every file is written under a temporary dotted name, flushed and renamed, so a reader sees whole files only, and
a run that is done again replaces its own files. Tables can be read as they are by pyarrow, pandas, Polars and
DuckDB (``runs/*.parquet``).
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale.accounting import cost
from umscale.design.study import QUESTIONS, Cell, Study
from umscale.errors import UserError
from umscale.files import atomic_path, write_error, write_text
from umscale.spec import RunSpec, from_dict, read_toml, to_dict

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

STORE_VERSION = 1
FINAL = ("finished", "diverged", "infeasible", "failed")
STAGES = ("stable", "annealed")

Row = dict[str, Any]

# Column types: s text, i int64, f float64, F list of float64. Sizes in parameters, losses in nats per token.
_SPEC_COLUMNS = {
    "run_id": "s",
    "study": "s",
    "status": "s",
    "reason": "s",
    "seed": "i",
    "budget": "i",
    "stage": "s",
    "architecture": "s",
    "d_model": "i",
    "n_layers": "i",
    "n_heads": "i",
    "d_ffn": "i",
    "vocab_size": "i",
    "seq_len": "i",
    "n_keys": "i",
    "n_values": "i",
    "top_m": "i",
    "heads": "i",
    "d_key": "i",
    "d_pre_value": "i",
    "d_value": "i",
    "n_experts": "i",
    "top_k": "i",
    "batch_size": "i",
    "lr": "f",
    "value_lr": "f",
    "sparse_params": "i",
    "active_sparse_params": "i",
    "density": "f",
    "total_params": "i",
    "active_params": "i",
    "embedding_params": "i",
    "flops_per_token": "f",
    "mcp": "f",
    "memory_to_ffn": "f",
    "corpus": "s",
    "data_hash": "s",
    "spec": "s",
}
_RESULT_COLUMNS = {
    "tokens": "i",
    "step": "i",
    "loss": "f",
    "loss_ema": "f",
    "bits_per_byte": "f",
    "bits_per_byte_ema": "f",
    "loss_by_position": "F",
    "value_use": "F",
    "value_entropy": "F",
    "access_bytes_b1": "f",
    "access_bytes_b16": "f",
    "access_bytes_b64": "f",
    "access_bytes_b256": "f",
    "train_seconds": "f",
    "eval_seconds": "f",
    "tokens_per_second": "f",
    "peak_memory_bytes": "i",
    "precision": "s",
    "device": "s",
    "kernels": "s",
    "versions": "s",
    "git_revision": "s",
    "machine": "s",
    "written_at": "s",
}
_TABLES = {
    "runs": _SPEC_COLUMNS | _RESULT_COLUMNS,
    "documents": {
        "run_id": "s",
        "budget": "i",
        "stage": "s",
        "document": "s",
        "n_tokens": "i",
        "n_bytes": "i",
        "nats": "f",
        "nats_ema": "f",
    },
    "curves": {
        "run_id": "s",
        "phase": "s",
        "tokens": "i",
        "loss": "f",
        "lr": "f",
        "value_lr": "f",
        "train_seconds": "f",
    },
    "cells": {
        "run_id": "s",
        "study": "s",
        "label": "s",
        "compensation": "s",
        "seed": "i",
        "targets": "s",
        "wanted": "s",
        "achieved": "s",
        "reason": "s",
    },
}


def schema(table: str) -> "pa.Schema":
    """Return the Arrow schema of ``runs``, ``documents``, ``curves`` or ``cells``."""
    import pyarrow as pa

    kinds = {"s": pa.string(), "i": pa.int64(), "f": pa.float64(), "F": pa.list_(pa.float64())}
    fields = [pa.field(name, kinds[kind]) for name, kind in _TABLES[table].items()]
    return pa.schema(fields, metadata={"umscale_store_version": str(STORE_VERSION)})


class Store:
    """A results store at ``root``; create it with ``Store.create`` or open one with ``Store.open``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[Path] = []
        """Files that could not be read by the last ``read``; everything else was."""

    @classmethod
    def open(cls, root: Path) -> "Store":
        """Open an existing store.

        Raises:
            UserError: no store there, or one made by a newer version.
        """
        store = cls(root)
        store._header()
        return store

    @classmethod
    def create(cls, root: Path) -> "Store":
        """Open the store at ``root``, making it first where there is none; safe with many processes."""
        if not (root / "store.json").exists():
            if root.is_dir() and any(p for p in root.iterdir() if not p.name.startswith(".")):
                raise UserError(f"{root} holds other files and no store; choose another --store folder")
            write_text(root / "store.json", json.dumps({"format": "umscale-store", "version": STORE_VERSION}))
        return cls.open(root)

    def _header(self) -> dict[str, Any]:
        path = self.root / "store.json"
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            version = int(header["version"])
        except FileNotFoundError:
            raise UserError(f"{self.root} is no results store; `umscale sweep STUDY` makes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); restore it or choose another store") from None
        if version > STORE_VERSION:
            raise UserError(
                f"{self.root} was made by a newer umscale (store version {version}, this one reads up to "
                f"{STORE_VERSION}); upgrade umscale"
            )
        assert isinstance(header, dict)
        return header

    # -- design -------------------------------------------------------------------------------------------

    def pinned_precision(self) -> str | None:
        """Return what ``precision = "auto"`` means in this store, once a sweep has measured it."""
        precision = self._header().get("precision")
        return precision if precision in ("float32", "bfloat16") else None

    def pin_precision(self, precision: str) -> None:
        """Fix what ``auto`` means, so that every machine that joins trains the same runs."""
        write_text(self.root / "store.json", json.dumps(self._header() | {"precision": precision}))

    def write_design(self, study: Study, cells: Sequence[Cell]) -> None:
        """Record the study and its cells, and a row for each infeasible one."""
        write_text(self.root / "study.toml", study.to_toml())
        self.write_cells(cells, study.name)

    def write_cells(self, cells: Sequence[Cell], study: str) -> None:
        """Record cells of a study beside those already there, and a row for each infeasible one."""
        rows = []
        for cell in cells:
            solved = cell.solved
            rows.append(
                {
                    "run_id": cell.run_id,
                    "study": study,
                    "label": cell.label,
                    "compensation": cell.compensation,
                    "seed": cell.seed,
                    "targets": json.dumps(dict(cell.targets)),
                    "wanted": json.dumps(dict(solved.targets) if solved else {}),
                    "achieved": json.dumps(dict(solved.achieved) if solved else {}),
                    "reason": cell.reason,
                }
            )
            if cell.run is None:
                row = {"run_id": cell.run_id, "study": study, "seed": cell.seed}
                self.write_rows("runs", cell.run_id, [row | {"status": "infeasible", "reason": cell.reason}])
        # A file for every design, so that a study swept again with other axes keeps its earlier cells too.
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
        self.write_rows("cells", digest, rows)

    def question(self) -> str:
        """Return the question of the study that was last run here; the default one when that is not known."""
        try:
            tree = read_toml(self.root / "study.toml")
        except UserError:
            tree = {}
        question = tree.get("question")
        return question if question in QUESTIONS else QUESTIONS[0]

    # -- writing ------------------------------------------------------------------------------------------

    def write_rows(self, table: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``rows`` as ``<table>/<name>.parquet``, replacing it atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = pa.Table.from_pylist([dict(row) for row in rows], schema=schema(table))
        with atomic_path(self.root / table / f"{name}.parquet") as temporary:
            pq.write_table(data, temporary, compression="zstd")

    def write_run(
        self,
        run: RunSpec,
        study: str,
        *,
        status: str,
        reason: str = "",
        records: Sequence[Row] = (),
        documents: Sequence[Row] = (),
        curve: Sequence[Row] = (),
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a run's tables; a run that ended early gets rows without losses where records are missing."""
        common = spec_row(run) | {"study": study, "status": status, "reason": reason} | dict(context or {})
        common["written_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found = {(r["budget"], r["stage"]): r for r in records}
        rows = []
        for budget in run.train.budgets:
            for stage in STAGES:
                record = found.get((budget, stage))
                if record is not None or status not in ("running", "finished"):
                    rows.append(common | {"budget": budget, "stage": stage} | (record or {}))
        run_id = run.run_id
        if documents:
            self.write_rows("documents", run_id, [{"run_id": run_id, **row} for row in documents])
        if curve:
            self.write_rows("curves", run_id, [{"run_id": run_id, **row} for row in curve])
        if rows:  # last, so that a finished run has all its tables
            self.write_rows("runs", run_id, rows)

    # -- reading ------------------------------------------------------------------------------------------

    def read(self, table: str) -> "pa.Table":
        """Return a whole table; a damaged file is skipped and named in ``self.damaged``."""
        import pyarrow as pa
        import pyarrow.dataset as ds
        import pyarrow.parquet as pq

        self.damaged = []
        files = sorted(p for p in (self.root / table).glob("*.parquet") if not p.name.startswith("."))
        wanted = schema(table)
        if not files:
            return wanted.empty_table()
        try:
            return ds.dataset([str(f) for f in files], schema=wanted, format="parquet").to_table()
        except (pa.ArrowException, OSError, ValueError):
            parts = []
            for file in files:
                try:
                    part = pq.read_table(file)
                    columns = [
                        part[f.name].cast(f.type)
                        if f.name in part.column_names
                        else pa.nulls(len(part), f.type)
                        for f in wanted
                    ]
                    parts.append(pa.table(columns, schema=wanted))
                except FileNotFoundError:
                    continue
                except (pa.ArrowException, OSError, ValueError):
                    self.damaged.append(file)
            return pa.concat_tables(parts) if parts else wanted.empty_table()

    def status(self, run_id: str) -> str | None:
        """Return a run's status, None when nothing (readable) is stored about it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            column = pq.read_table(self.root / "runs" / f"{run_id}.parquet", columns=["status"])["status"]
            return str(column[0].as_py()) if len(column) else None
        except (OSError, pa.ArrowException, KeyError):
            return None

    def statuses(self) -> dict[str, str]:
        """Return the status of every stored run by id."""
        table = self.read("runs").select(["run_id", "status"])
        return dict(zip(table["run_id"].to_pylist(), table["status"].to_pylist(), strict=True))

    def final_record(self, run_id: str) -> Row | None:
        """Return the annealed record at the largest budget of a finished run, None for any other."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(self.root / "runs" / f"{run_id}.parquet").to_pylist()
        except (OSError, pa.ArrowException):
            return None
        kept = [r for r in rows if r["status"] == "finished" and r["stage"] == "annealed"]
        return max(kept, key=lambda r: int(r["budget"]), default=None)

    def specs(self, status: str) -> list[RunSpec]:
        """Return the specs of all runs with a status."""
        import pyarrow.compute as pc

        table = self.read("runs").select(["status", "spec"])
        texts = table.filter(pc.equal(table["status"], status))["spec"].unique().drop_null().to_pylist()
        return [from_dict(RunSpec, json.loads(text)) for text in texts]

    def columns(self, status: str | None = "finished") -> "dict[str, np.ndarray]":
        """Return the runs joined with the design, as columns of NumPy arrays, for fits and plots.

        A run that serves several cells (the reference under two compensations, say) gives a row for each;
        ``compensation`` tells them apart. Integers become floats with NaN where missing; text stays objects.

        Args:
            status: keep the rows of runs with this status alone; None keeps all.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        runs = self.read("runs")
        damaged = self.damaged
        cells = self._labels(["run_id", "compensation"])
        self.damaged += damaged
        if status is not None:
            runs = runs.filter(pc.equal(runs["status"], status))
        scalars = [f.name for f in runs.schema if not pa.types.is_list(f.type)]
        joined = runs.select(scalars).join(cells, keys="run_id", join_type="left outer")
        joined = joined.sort_by(
            [(k, "ascending") for k in ("seed", "run_id", "compensation", "budget", "tokens")]
        )
        out: dict[str, np.ndarray] = {}
        for field in joined.schema:
            column = joined[field.name]
            if pa.types.is_string(field.type):
                out[field.name] = np.array(column.to_pylist(), dtype=object)
            else:
                out[field.name] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return out

    def _labels(self, keys: list[str]) -> "pa.Table":
        """Return a label for each distinct combination of ``keys`` in all designs."""
        cells = self.read("cells").group_by(keys).aggregate([("label", "min")])
        return cells.select([*keys, "label_min"]).rename_columns([*keys, "label"])

    def curves(self) -> "dict[str, np.ndarray]":
        """Return the training curves of all runs as columns of NumPy arrays, with the cells' labels."""
        curves = self.read("curves")
        damaged = self.damaged
        cells = self._labels(["run_id"])
        self.damaged += damaged
        joined = curves.join(cells, keys="run_id", join_type="left outer")
        joined = joined.sort_by([("run_id", "ascending"), ("train_seconds", "ascending")])
        return {name: joined[name].to_numpy(zero_copy_only=False) for name in joined.column_names}

    # -- work in progress ---------------------------------------------------------------------------------

    def checkpoints(self, run_id: str) -> Path:
        """Return the folder of a run's checkpoints."""
        return self.root / "work" / "checkpoints" / run_id

    def log_path(self, run_id: str) -> Path:
        """Return the file that holds the traceback of a failed run."""
        return self.root / "work" / "logs" / f"{run_id}.log"

    def clear_work(self, run_id: str) -> None:
        """Remove the checkpoints of a run that is over."""
        shutil.rmtree(self.checkpoints(run_id), ignore_errors=True)

    def forget(self, run_id: str) -> None:
        """Remove a run's results and checkpoints, so that it is trained again."""
        for table in ("runs", "documents", "curves"):
            (self.root / table / f"{run_id}.parquet").unlink(missing_ok=True)
        self.clear_work(run_id)

    @contextlib.contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Yield whether this process now owns the run; the claim ends with the block or with the process.

        A kernel file lock, so that a killed worker's claim is free at once and two sweeps of one store share
        its runs.
        """
        path = self.root / "work" / "claims" / f"{run_id}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)


def spec_row(run: RunSpec) -> Row:
    """Return the columns of a record that follow from the spec alone."""
    model, memory = run.model, run.model.memory
    sizes = dataclasses.asdict(cost(model, run.data.seq_len))
    row: Row = {
        "run_id": run.run_id,
        "seed": run.seed,
        "architecture": model.architecture,
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "d_ffn": model.ffn.d_ffn,
        "vocab_size": model.vocab_size,
        "seq_len": run.data.seq_len,
        "batch_size": run.train.batch_size,
        "lr": run.train.lr,
        "value_lr": run.train.value_lr,
        "precision": run.train.precision,
        "corpus": Path(run.data.corpus).name,
        "data_hash": run.data.hash,
        "spec": json.dumps(to_dict(run), separators=(",", ":")),
    }
    if memory is not None:
        names = ("n_keys", "n_values", "top_m", "heads", "d_key", "d_pre_value", "d_value")
        row |= {name: getattr(memory, name) for name in names}
    if model.ffn.kind == "moe":
        row |= {"n_experts": model.ffn.n_experts, "top_k": model.ffn.top_k}
    row |= {name: value for name, value in sizes.items() if name in _SPEC_COLUMNS}
    return row
