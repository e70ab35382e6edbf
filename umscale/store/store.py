"""The results store: a folder of Parquet files that any number of processes write and anything reads.

    STORE/
      store.json               format version, pinned precision, how long a silent worker keeps its claim
      study.toml               the study that was last run here
      cells/<id>.parquet       a design: a row per cell, with its targets and its run
      runs/<run_id>.parquet    a row per (run, budget, stage)
      documents/<run_id>.parquet   a row per (run, budget, stage, validation document)
      curves/<run_id>.parquet  training loss along trunk and branches
      probes/<run_id>.parquet  a row per (run, budget, stage, generated task), where a study has any
      evaluations/<run_id>.parquet  a row per (run, budget, stage, evaluation, metric), where a study has any of its own
      weights/<run_id>/        weights of records, where the study keeps any (``train.keep``), and their tokenizer
      trunks/<trunk_id>/       trunks that runs of larger budgets go on from, by step
      <table>/packed.parquet   after ``umscale pack``: all rows of a table, in place of its files
      work/                    claims, jobs, checkpoints and logs of runs in progress; what speeds up reading
      quarantine/              damaged files, moved out of the way

It lives in a local or shared folder, or in object storage (``umscale.files``). Files are replaced whole, so a reader
sees whole files only, and a run that is done again replaces its own; each carries a checksum
(``umscale.store.schema``). Tables can be read as they are by pyarrow, pandas, Polars and DuckDB (``runs/*.parquet``).
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale import parts
from umscale.cell_labels import label_parts
from umscale.design.question_names import QUESTIONS
from umscale.design.study import Cell, Study
from umscale.errors import UserError
from umscale.files import SHORTEST, Files, LocalFiles, Unusable, open_files, quarantine
from umscale.spec import LONGEST_TOML, RunSpec, read_run, with_old_meanings
from umscale.store.cache import PACKED, Scanner
from umscale.store.leases import STALE_SECONDS, Claim, Claims, Lease
from umscale.store.schema import (
    PACKED_VERSION,
    SPEC_COLUMNS,
    STAGES,
    STORE_VERSION,
    TABLES,
    Damaged,
    from_parquet,
    probe_column,
    schema,
    to_parquet,
    verify,
)
from umscale.trees import parse_object, parse_toml

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


__all__ = ["FINAL", "MEASURED", "STAGES", "STATUSES", "Row", "Store", "checkpoint_folder", "schema"]

FINAL = ("finished", "diverged", "infeasible", "failed")
STATUSES = ("running", "paused", *FINAL, "pruned")
MEASURED = ("finished", "paused")
"""Of runs whose records count: all of them, or those up to where a sweep was told to stop."""
_OUTPUTS = ("figures", "report")
"""Folders that ``umscale plot`` and ``umscale report`` write where a store of that name would be."""
RUN_TABLES = ("runs", "documents", "curves", "probes", "evaluations")
"""Tables with a file a run. A run counts as over by its file in the first."""

Row = dict[str, Any]


def checkpoint_folder(run_id: str) -> str:
    """Return the folder of a store where a run's checkpoints are kept."""
    return f"work/checkpoints/{run_id}"


class Store:
    """A results store at ``root``; create it with ``Store.create`` or open one with ``Store.open``.

    Who may write: ``write_run`` for a run that this process has claimed (``claim``), from any number of processes and
    machines; ``write_design``, ``pin_precision`` and ``repair`` a sweep that begins; ``pack`` while nobody works
    here. What a reader may see, at any time: whole files only, each as its writer left it; of a run its ``runs`` rows
    last, so whoever sees that a run is over finds all its tables; a run in progress, its rows up to now. Two reads in
    turn may see different moments. Nothing that was read is ever cut short by a later write.

    Args:
        root: a folder, or a URL of object storage such as ``s3://bucket/prefix?region=eu-west-1``.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.files: Files = open_files(root)
        self._scanner = Scanner(self.files)
        self._claims: Claims | None = None
        self._leases: dict[str, Lease] = {}

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> "Store":
        """Open an existing store.

        Raises:
            UserError: no store there, or one made by a newer version.
        """
        store = cls(root)
        store._header()
        return store

    @classmethod
    def open_if_any(cls, root: str | os.PathLike[str]) -> "Store | None":
        """Open the store at ``root``; None where there is none. Raises ``UserError`` as ``open`` does otherwise."""
        store = cls(root)
        return cls.open(root) if store.files.exists("store.json") else None

    @classmethod
    def create(cls, root: str | os.PathLike[str]) -> "Store":
        """Open the store at ``root`` for writing, making it first where there is none; safe with many processes."""
        store = cls(root)
        if not store.files.exists("store.json"):
            if store.files.occupied(but=_OUTPUTS):
                raise UserError(f"{store.name} holds other files and no store; choose another --store folder")
            store._write_header({"format": "umscale-store", "version": STORE_VERSION})
        else:
            header = store._header()
            if header["version"] < STORE_VERSION:  # an older umscale must not join any more
                store._write_header(header | {"version": STORE_VERSION})
        return store

    @property
    def name(self) -> str:
        """Where the store is, without secrets: for messages and records."""
        return self.files.describe()

    @property
    def address(self) -> str:
        """What opens the store again, in this process or a worker; may hold a password."""
        return self.files.address

    @property
    def root(self) -> Path:
        """The store's folder.

        Raises:
            UserError: it is in object storage.
        """
        if isinstance(self.files, LocalFiles):
            return self.files.root
        raise UserError(f"{self.name} is no folder; copy the store into one for this")

    @property
    def is_folder(self) -> bool:
        """Whether the store is in a folder."""
        return isinstance(self.files, LocalFiles)

    @property
    def scratch(self) -> Path:
        """A folder on this machine for logs: in the store, or for object storage in the user's cache."""
        if isinstance(self.files, LocalFiles):
            return self.files.root / "work"
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return cache_home() / "stores" / digest

    @property
    def damaged(self) -> list[str]:
        """Files that could not be read by the last ``read``; everything else was."""
        return self._scanner.damaged

    def _header(self) -> dict[str, Any]:
        where = self.files.describe("store.json")
        try:
            header = parse_object(self.files.read("store.json", SHORTEST))
            version = header["version"]
            if not isinstance(version, int):
                raise ValueError(f"version = {version!r}")
        except FileNotFoundError:
            raise UserError(f"{self.name} is no results store; `umscale sweep STUDY` makes one") from None
        except (OSError, ValueError, KeyError, Unusable) as error:
            raise UserError(f"{where} is damaged ({error}); restore it or choose another store") from None
        if version > PACKED_VERSION:
            raise UserError(
                f"{self.name} was made by a newer umscale (store version {version}, this one reads up to "
                f"{PACKED_VERSION}); upgrade umscale"
            )
        return header

    def _write_header(self, header: Mapping[str, Any]) -> None:
        self.files.write("store.json", json.dumps(header).encode())

    # -- design -------------------------------------------------------------------------------------------

    def pinned_precision(self) -> str | None:
        """Return what ``precision = "auto"`` means in this store, once a sweep has measured it."""
        precision = self._header().get("precision")
        return precision if precision in ("float32", "bfloat16") else None

    def pin_precision(self, precision: str) -> None:
        """Fix what ``auto`` means, so that every machine that joins trains the same runs."""
        self._write_header(self._header() | {"precision": precision})

    def stale_seconds(self) -> float:
        """Return how long a worker may show no progress before others take its run over."""
        seconds = self._header().get("stale_seconds", STALE_SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
            raise UserError(
                f"{self.files.describe('store.json')}: stale_seconds = {seconds!r} must be positive"
            )
        return float(seconds)

    def set_stale_seconds(self, seconds: float) -> None:
        """Set how long a worker may show no progress; processes that are running keep what they read."""
        self._write_header(self._header() | {"stale_seconds": seconds})

    def write_design(self, study: Study, cells: Sequence[Cell]) -> None:
        """Record the study and its cells, and a row for each infeasible one."""
        self.files.write("study.toml", study.to_toml().encode())
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

    def study_tree(self) -> dict[str, Any]:
        """Return the study that was last run here as a TOML tree, one of an earlier version with what it meant then.

        Raises:
            UserError: it is missing or damaged.
        """
        where = self.files.describe("study.toml")
        try:
            tree = parse_toml(self.files.read("study.toml", LONGEST_TOML).decode())
        except FileNotFoundError:
            raise UserError(f"{where}: no such file; this store was not made by a sweep") from None
        except (ValueError, Unusable) as error:
            raise UserError(f"{where}: not valid TOML: {error}") from None
        return {"d_ffn_multiple": 1} | with_old_meanings(tree)

    def question(self) -> str:
        """Return the question of the study that was last run here; the default one when that cannot be asked here."""
        try:
            question = self.study_tree().get("question")
        except UserError:
            question = None
        known = isinstance(question, str) and (question in QUESTIONS or not self.absent_question())
        return str(question) if known else QUESTIONS[0]

    def absent_question(self) -> str:
        """Return why the study's question cannot be asked here, in words, where it is of a package; else nothing."""
        try:
            tree = self.study_tree()
        except UserError:
            return ""
        question, package = tree.get("question"), tree.get("question_package")
        if not isinstance(question, str) or question in QUESTIONS:
            return ""
        if not isinstance(package, str) or not package:
            return f"question {question!r}, which nothing here knows"
        offered = [part.package for part in parts.offered("questions") if part.name == question]
        return "" if offered else parts.absent("questions", question, package)

    # -- writing ------------------------------------------------------------------------------------------

    def write_rows(self, table: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``rows`` as ``<table>/<name>.parquet``, replacing it whole."""
        import pyarrow as pa

        data = pa.Table.from_pylist([dict(row) for row in rows], schema=schema(table))
        self.files.write(f"{table}/{name}.parquet", to_parquet(data))

    def write_run(
        self,
        row: Row,
        study: str,
        *,
        status: str,
        reason: str = "",
        records: Sequence[Row] = (),
        documents: Sequence[Row] = (),
        curve: Sequence[Row] = (),
        probes: Sequence[Row] = (),
        evaluations: Sequence[Row] = (),
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a run's tables; a run that ended early gets rows without losses where records are missing.

        Args:
            row: what every record says of the run, ``umscale.training.record.spec_row``; its ``budgets`` are no column.

        Raises:
            ClaimLost: this process had claimed the run, and another worker has taken over.
        """
        run_id = row["run_id"]
        if lease := self._leases.get(run_id):
            lease.check()
        common = {**row} | {"study": study, "status": status, "reason": reason} | dict(context or {})
        common["written_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found = {(r["budget"], r["stage"]): r for r in records}
        rows = []
        for budget in common.pop("budgets"):
            for stage in STAGES:
                record = found.get((budget, stage))
                if record is not None or status not in ("running", *MEASURED):
                    rows.append(common | {"budget": budget, "stage": stage} | (record or {}))
        beside = {"documents": documents, "curves": curve, "probes": probes, "evaluations": evaluations}
        for table, its in beside.items():
            if its:
                self.write_rows(table, run_id, [{"run_id": run_id, **row} for row in its])
        if rows:  # last, so that a finished run has all its tables
            self.write_rows("runs", run_id, rows)

    def fail_run(
        self, row: Row, study: str, reason: str, *, context: Mapping[str, Any] | None = None
    ) -> None:
        """Record a run as failed, with the losses it had before: what one that was paused had measured is not lost.

        Arguments and errors are those of ``write_run``.
        """
        of_spec = SPEC_COLUMNS.keys() - {"budget", "stage"}
        kept = [
            {name: value for name, value in record.items() if name not in of_spec}
            for record in self._records(row["run_id"])
            if record["loss"] is not None
        ]
        self.write_run(row, study, status="failed", reason=reason, records=kept, context=context)

    # -- reading ------------------------------------------------------------------------------------------

    def read(self, table: str) -> "pa.Table":
        """Return a whole table; a damaged file is left out and named in ``self.damaged``."""
        return self._scanner.read(table)

    def status(self, run_id: str) -> str | None:
        """Return a run's status, None when nothing (readable) is stored about it."""
        return self._scanner.status(run_id)

    def statuses(self) -> dict[str, str]:
        """Return the status of every stored run by id: one listing, and the files that changed since the last call."""
        return self._scanner.statuses()

    def final_record(self, run_id: str) -> Row | None:
        """Return the annealed record at the largest budget of a finished run, None for any other."""
        kept = [r for r in self._records(run_id) if r["status"] == "finished" and r["stage"] == "annealed"]
        return max(kept, key=lambda r: int(r["budget"]), default=None)

    def tokens_reached(self, run_id: str) -> int:
        """Return the largest budget, in tokens, that a paused run has an annealed record of; 0 for any other run."""
        kept = [r for r in self._records(run_id) if r["status"] == "paused" and r["stage"] == "annealed"]
        return max((int(r["budget"]) for r in kept), default=0)

    def _records(self, run_id: str) -> list[Row]:
        """Return a run's rows; none where nothing readable is stored about it."""
        try:
            rows = from_parquet(self.files.read(f"runs/{run_id}.parquet"), schema("runs"))[0]
        except FileNotFoundError:
            packed = self._scanner.packed("runs")
            if packed.rows is None or run_id not in packed.sources:
                return []
            at = packed.sources[run_id][1]
            rows = packed.rows.slice(at.start, len(at))
        except (Damaged, Unusable):
            return []
        found: list[Row] = rows.to_pylist()
        return found

    def specs(self, status: str) -> list[RunSpec]:
        """Return the specs of all runs with a status."""
        import pyarrow.compute as pc

        table = self.read("runs").select(["status", "spec"])
        texts = table.filter(pc.equal(table["status"], status))["spec"].unique().drop_null().to_pylist()
        return [read_run(text) for text in texts]

    def columns(self, status: str | Collection[str] | None = MEASURED) -> "dict[str, np.ndarray]":
        """Return the runs joined with the design, as columns of NumPy arrays, for fits and plots.

        A run that serves several cells (the reference under two compensations, say) gives a row for each;
        ``compensation`` tells them apart. Integers become floats with NaN where missing; text stays objects. Where
        generated tasks were measured (``data.probes``), ``facts_nats`` and its like hold their loss in nats per symbol
        of an answer. What evaluations of packages gave (``data.evaluations``) stands under ``EVALUATION.METRIC``.

        Args:
            status: keep the rows of runs with this status, or one of these; None keeps all.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        runs = self.read("runs")
        damaged = self.damaged
        cells = self._labels(["run_id", "compensation"])
        damaged = damaged + self.damaged
        if status is not None:
            kept = [status] if isinstance(status, str) else list(status)
            runs = runs.filter(pc.is_in(runs["status"], pa.array(kept, pa.string())))
        scalars = [f.name for f in runs.schema if not pa.types.is_list(f.type)]
        joined = _joined(runs.select(scalars), cells, ("compensation", "label"))
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
        if own := self._baselines():
            words = [dict(w.partition("=")[::2] for w in label_parts(label)) for label in out["label"]]
            out["baseline"] = np.array([own.get(w.get("architecture", "")) for w in words], dtype=object)
        measured = self.read("probes").to_pylist()
        damaged = damaged + self.damaged
        out |= self._evaluated(out)
        self._scanner.damaged = damaged + self.damaged
        if measured:
            nats = {(r["run_id"], r["budget"], r["stage"], r["task"]): r["nats"] for r in measured}
            rows = list(zip(out["run_id"], out["budget"], out["stage"], strict=True))
            for task in dict.fromkeys(r["task"] for r in measured):
                out[probe_column(task)] = np.array([nats.get((*row, task), np.nan) for row in rows])
        return out

    def _evaluated(self, rows: "Mapping[str, np.ndarray]") -> "dict[str, np.ndarray]":
        """Return a column ``EVALUATION.METRIC`` for each number that evaluations of packages gave."""
        import numpy as np

        measured, found = self.read("evaluations").to_pylist(), {}
        values = {
            (r["run_id"], r["budget"], r["stage"], f"{r['evaluation']}.{r['metric']}"): r["value"]
            for r in measured
        }
        places = list(zip(rows["run_id"], rows["budget"], rows["stage"], strict=True))
        for name in dict.fromkeys(name for *_, name in values):
            found[name] = np.array([values.get((*place, name), np.nan) for place in places], dtype=np.float64)
        return found

    def _baselines(self) -> dict[str, str]:
        """Return what the study compares architectures with that have a baseline of their own."""
        try:
            found = self.study_tree().get("architectures", {})
        except UserError:
            return {}
        trees = found.items() if isinstance(found, dict) else ()
        return {k: str(t["baseline"]) for k, t in trees if isinstance(t, dict) and "baseline" in t}

    def probes(self, status: str | Collection[str] | None = None) -> list[Row]:
        """Return the rows of ``probes`` with the cells' labels, in order of label, run, budget and stage.

        Args:
            status: keep the runs with this status, or one of these; None keeps all.
        """
        rows = self.read("probes").to_pylist()
        damaged = self.damaged
        labels = {row["run_id"]: row["label"] for row in self._labels(["run_id"]).to_pylist()}
        damaged = damaged + self.damaged
        statuses = self.statuses() if status is not None else {}
        self._scanner.damaged = damaged
        kept = [row | {"label": labels.get(row["run_id"])} for row in rows]
        if status is not None:
            wanted = {status} if isinstance(status, str) else set(status)
            kept = [row for row in kept if statuses.get(row["run_id"]) in wanted]
        order = {stage: i for i, stage in enumerate(STAGES)}
        return sorted(
            kept, key=lambda r: (r["label"] or "", r["run_id"], r["budget"], order.get(r["stage"], 0))
        )

    def _labels(self, keys: list[str]) -> "pa.Table":
        """Return a label for each distinct combination of ``keys`` in all designs."""
        import pyarrow as pa

        least: dict[tuple[Any, ...], str | None] = {}
        cells = self.read("cells")
        columns = (cells[name].to_pylist() for name in (*keys, "label"))
        for *key, label in zip(*columns, strict=True):
            known = least.get(tuple(key))
            least[tuple(key)] = label if known is None or (label is not None and label < known) else known
        made = [pa.array([key[i] for key in least], pa.string()) for i in range(len(keys))]
        return pa.table([*made, pa.array(list(least.values()), pa.string())], names=[*keys, "label"])

    def curves(self) -> "dict[str, np.ndarray]":
        """Return the training curves of all runs as columns of NumPy arrays, with the cells' labels."""
        curves = self.read("curves")
        damaged = self.damaged
        cells = self._labels(["run_id"])
        self._scanner.damaged += damaged
        joined = _joined(curves, cells, ("label",))
        joined = joined.sort_by([("run_id", "ascending"), ("train_seconds", "ascending")])
        return {name: joined[name].to_numpy(zero_copy_only=False) for name in joined.column_names}

    def repair(self) -> list[str]:
        """Put right what crashes and failing disks have left; to be called when a sweep begins.

        Damaged files move into quarantine, with what else their runs have here, so that those are done again.

        Files that ``read`` has verified since they were written are not read again.

        Returns:
            A message for each damaged file.
        """
        self.files.tidy()
        messages = []
        for table in TABLES:
            self._scanner.damaged = []
            self._scanner.packed(table)
            for path in self._scanner.damaged:
                to = quarantine(self.files, f"{table}/{PACKED}.parquet")
                messages.append(f"{path} is damaged; moved to {to}, its runs are trained again")
            for name in self._scanner.unverified(table):
                path = f"{table}/{name}.parquet"
                try:
                    verify(self.files.read(path))
                except FileNotFoundError:
                    continue
                except (Damaged, Unusable) as error:
                    if table in RUN_TABLES:
                        to, redone = self._set_aside(name)[table], "its run is trained again"
                    else:
                        to, redone = quarantine(self.files, path), "the sweep writes it again"
                    messages.append(
                        f"{self.files.describe(path)} is damaged ({error}); moved to {to}, {redone}"
                    )
        return messages

    def pack(self) -> dict[str, int]:
        """Put each table into one file, in place of one for every run; returns how many files each table had.

        Readers, resumption and names stay as they are, and further writes lie beside the packed file and win over it.
        A crash on the way leaves files that say the same as the packed one.

        Raises:
            UserError: somebody works here, a run is not over, or a file is damaged.
        """
        if claimed := self.claimed():
            raise UserError(
                f"{self.name}: {len(claimed)} runs are being worked on; pack it when they are over"
            )
        if running := [run for run, status in self.statuses().items() if status == "running"]:
            raise UserError(f"{self.name}: {len(running)} runs are not over; sweep them to their end first")
        packed = {}
        self._write_header(
            self._header() | {"version": PACKED_VERSION}
        )  # older readers must not take it for one run
        for table in TABLES:
            self._scanner.damaged = []
            if not self._scanner.unpacked(table):
                continue
            names = self._scanner.pack(table)
            for name in names:
                self.files.delete(f"{table}/{name}.parquet")
            packed[table] = len(names)
        self.files.delete_folder("work/scan")
        return packed

    def _set_aside(self, run_id: str) -> dict[str, str]:
        """Move a damaged run into quarantine, first what says that it is over: a crash half way must not leave that."""
        return {table: quarantine(self.files, f"{table}/{run_id}.parquet") for table in RUN_TABLES}

    # -- work in progress ---------------------------------------------------------------------------------

    def checkpoint_folder(self, run_id: str) -> str:
        """Return the folder of ``files`` where a run's checkpoints are kept."""
        return checkpoint_folder(run_id)

    def weights_folder(self, run_id: str) -> str:
        """Return the folder of ``files`` where the weights of a run's records are kept."""
        return f"weights/{run_id}"

    def trunk_folder(self, trunk_id: str) -> str:
        """Return the folder of ``files`` where what runs of one trunk have left of it is kept."""
        return f"trunks/{trunk_id}"

    def lease(self, run_id: str) -> Lease | None:
        """Return the lease under which this process works on a run; None without one."""
        return self._leases.get(run_id)

    def log_path(self, run_id: str) -> Path:
        """Return the file, on this machine, that holds the traceback of a failed run."""
        return self.scratch / "logs" / f"{run_id}.log"

    def clear_work(self, run_id: str) -> None:
        """Remove the checkpoints of a run that is over."""
        self.files.delete_folder(self.checkpoint_folder(run_id))

    def forget(self, run_id: str, trunk_id: str | None = None) -> None:
        """Remove a run's results, weights and checkpoints, so that it is trained again; its trunk too if named."""
        for table in RUN_TABLES:
            self.files.delete(f"{table}/{run_id}.parquet")
            if run_id in self._scanner.packed(table).sources:
                self._scanner.pack(table, without=run_id)
        self.files.delete_folder(self.weights_folder(run_id))
        if trunk_id is not None:
            self.files.delete_folder(self.trunk_folder(trunk_id))
        self.clear_work(run_id)

    @contextlib.contextmanager
    def claim(self, run_id: str) -> Iterator[Lease | None]:
        """Yield a lease (true) if this process now owns the run, else None; it ends with the block.

        A process that dies or shows no progress (``Lease.beat``) loses it: see ``umscale.store.leases``.
        """
        lease = self._claiming().claim(run_id)
        if lease is None:
            yield None
            return
        self._leases[run_id] = lease
        try:
            yield lease
        finally:
            del self._leases[run_id]
            self._claiming().release(lease)

    def claimed(self) -> dict[str, Claim]:
        """Return who works on which run, in one listing."""
        return self._claiming().live()

    def stale(self, tokens: Mapping[str, str]) -> set[str]:
        """Return the runs whose owners hang, of claims' tokens by run; see ``Claims.stale``."""
        return self._claiming().stale(tokens)

    def token(self, run_id: str) -> str:
        """Return the token of the claim under which this process works on a run; empty without one."""
        lease = self._leases.get(run_id)
        return lease.token if lease else ""

    def _claiming(self) -> Claims:
        if self._claims is None:
            self._claims = Claims(self.files, "work/claims", self.stale_seconds())
        return self._claims


def _joined(rows: "pa.Table", labels: "pa.Table", names: Sequence[str]) -> "pa.Table":
    """Return ``rows`` with the columns ``names`` of ``labels`` by ``run_id``: a row for each match, and for none one.

    As ``pyarrow.Table.join`` does, whose engine imports pandas where there is one and so doubles the time to start.
    """
    import pyarrow as pa

    at: dict[str, list[int]] = {}
    for i, run_id in enumerate(labels["run_id"].to_pylist()):
        at.setdefault(run_id, []).append(i)
    pairs = [(i, k) for i, run_id in enumerate(rows["run_id"].to_pylist()) for k in at.get(run_id, (None,))]
    left = rows.take(pa.array([i for i, _ in pairs], pa.int64()))
    right = labels.take(pa.array([k for _, k in pairs], pa.int64()))
    for name in names:
        left = left.append_column(name, right[name])
    return left


def cache_home() -> Path:
    """Return ``umscale`` in ``$XDG_CACHE_HOME`` (default ``~/.cache``)."""
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own).absolute() if own else Path.home() / ".cache") / "umscale"
