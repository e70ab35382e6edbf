"""A sweep whose runs are trained by a command of the user's: torchtitan, Megatron, nanochat, anything.

The grid, the claims, resumption, the store and all that reads it stay; what trains a cell is a process. It is told a
cell in a file, and answers with JSON lines. docs/own-trainers.md says what both hold.

The command never comes from a store, which a stranger may have made: who starts a worker says it, in the environment
variable ``UMSCALE_TRAINER``. It is run without a shell.
"""

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from umscale.accounting import cost
from umscale.data.corpus import open_corpus
from umscale.errors import UserError, nearest
from umscale.execute.claimed_run import Reporter
from umscale.execute.job import Kinds
from umscale.execute.workload import Plan
from umscale.files import read_bounded, write_text
from umscale.model.scaling import learning_rates
from umscale.spec import RunSpec, to_dict, to_toml
from umscale.store.leases import ClaimLost
from umscale.store.schema import SPEC_COLUMNS, STAGES, TABLES
from umscale.store.store import Store
from umscale.training.record import spec_row
from umscale.trees import parse_object

TRAINER_VARIABLE = "UMSCALE_TRAINER"
KERNELS = "own trainer"
"""What such a record says of its kernels."""
LONGEST_OUTPUT = 64 << 20
"""Bytes of a trainer's records."""
POLL_SECONDS = 0.2
STOP_SECONDS = 20.0
RESULT_COLUMNS = {
    name: kind for name, kind in TABLES["runs"].items()
    if name not in (*SPEC_COLUMNS, "kernels", "versions", "written_at", "git_revision")
}  # fmt: skip
_KINDS: Mapping[str, Mapping[str, str]] = {
    "record": {"budget": "i", "stage": "s", **RESULT_COLUMNS},
    "document": {k: v for k, v in TABLES["documents"].items() if k != "run_id"},
    "curve": {k: v for k, v in TABLES["curves"].items() if k != "run_id"},
}
_NEEDED = {
    "record": ("budget", "loss"), "document": ("budget", "document", "n_tokens", "n_bytes", "nats"),
    "curve": ("tokens", "loss"),
}  # fmt: skip
_WORDS = {"i": "a whole number", "f": "a finite number", "s": "text", "F": "a list of numbers"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerPlan(Plan):
    """Runs that a command trains."""

    kind: ClassVar[str] = "trainer"

    def train(self, store: Store, run: RunSpec, report: Reporter, device_name: str) -> None:
        """Train one run, which is claimed."""
        train_with(store, self.study, run, report, os.environ.get(TRAINER_VARIABLE, ""))


JOBS: Kinds = {TrainerPlan.kind: TrainerPlan.from_tree}
"""What a worker of such a sweep reads."""


@dataclass(kw_only=True, slots=True)
class Told:
    """What a trainer said of a run."""

    status: str = "finished"
    reason: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


def check_command(command: str) -> None:
    """Raise ``UserError`` for a command that cannot be run for a cell."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--trainer {command!r}: {error}") from None
    if not words:
        raise UserError("--trainer: say a command, as in 'python train.py {spec}'")
    if not any(mark in command for mark in ("{spec}", "{toml}")):
        raise UserError(
            f"--trainer {command!r} is not told the cell: write {{spec}} (JSON) or {{toml}} into it"
        )


def check_store(store: Store, run_ids: Sequence[str]) -> None:
    """Raise ``UserError`` where runs of these ids were trained by umscale itself: they would count as the command's."""
    runs = store.read("runs").select(["run_id", "kernels"]).to_pylist()
    mine = set(run_ids)
    other = {r["run_id"] for r in runs if r["run_id"] in mine and r["kernels"] not in (None, "", KERNELS)}
    if other:
        raise UserError(
            f"{store.name} holds {len(other)} of these runs as trained by umscale; give --trainer a --store of its own"
        )


def train_with(store: Store, study: str, run: RunSpec, report: Reporter, command: str) -> None:
    """Let ``command`` train one claimed run, and write what it tells; what it does wrong becomes the run's reason.

    Raises:
        UserError: no command is said here, or it cannot be started.
    """
    if not command:
        raise UserError(f"these runs are trained by a command that is not said here; set {TRAINER_VARIABLE}")
    run_id = run.run_id
    report("start", run=run_id, token=store.token(run_id))
    folder = store.scratch / "trainer" / run_id
    write_cell(folder, study, run)
    (folder / "records.jsonl").unlink(missing_ok=True)
    try:
        code = _call(store, run, report, command, folder)
        if code is None:
            return
        if code != 0:
            raise UserError(f"exit code {code}: {_last_line(folder / 'stderr.txt')}")
        told = read_records(run, _output(folder))
    except ClaimLost:
        return
    except UserError as error:
        if isinstance(error, _NotStarted):
            raise
        told = Told(status="failed", reason=str(error)[:500])
    context = {
        "kernels": KERNELS,
        "versions": json.dumps({"trainer": command}),
        "machine": os.uname().machine,
    }
    if told.status == "failed" and not told.records:
        store.fail_run(spec_row(run), study, told.reason, context=context)
        report("end", run=run_id, status=told.status, reason=told.reason)
        return
    for record in told.records:
        record.setdefault("device", "")
    store.write_run(
        spec_row(run), study, status=told.status, reason=told.reason, records=told.records,
        documents=told.documents, curve=told.curve, context=context,
    )  # fmt: skip
    report("end", run=run_id, status=told.status, reason=told.reason)


class _NotStarted(UserError):
    pass


def write_cell(folder: Path, study: str, run: RunSpec) -> None:
    """Write what a trainer is told into ``folder``: ``spec.json``, and the same as ``spec.toml``."""
    lr, value_lr = learning_rates(run)
    corpus = open_corpus(run.data.corpus)
    tree = {
        "format": "umscale-cell",
        "version": 1,
        "run_id": run.run_id,
        "study": study,
        "spec": to_dict(run),
        "cost": cost(run.model, run.data.seq_len).to_dict(),
        "rates": {"lr": lr, "value_lr": value_lr},
        "corpus": {
            "name": corpus.name,
            "path": str(corpus.path),
            "hash": corpus.hash,
            "vocab_size": corpus.vocab_size,
        },
    }
    write_text(folder / "spec.json", json.dumps(tree, indent=1))
    write_text(folder / "spec.toml", to_toml({k: v for k, v in tree.items() if k != "cost"}))


def _call(store: Store, run: RunSpec, report: Reporter, command: str, folder: Path) -> int | None:
    """Run the command to its end and return its exit code; None when it was asked to stop."""
    names = {
        "{spec}": folder / "spec.json", "{toml}": folder / "spec.toml", "{out}": folder / "records.jsonl",
        "{folder}": folder, "{run_id}": run.run_id, "{seed}": run.seed,
    }  # fmt: skip
    words = shlex.split(command)
    for mark, value in names.items():
        words = [word.replace(mark, str(value)) for word in words]
    lease = store.lease(run.run_id)
    with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as err:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise _NotStarted(f"--trainer: {words[0]} cannot be started ({error.strerror})") from None
        try:
            while process.poll() is None:
                if report.stopping:
                    return None
                if lease is not None:
                    lease.beat()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        finally:
            _end(process)
    return process.returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a trainer and what it started to stop; kill what does not."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _output(folder: Path) -> str:
    """Return a trainer's records: its file, or the lines of its stdout that are JSON objects."""
    try:
        return read_bounded(folder / "records.jsonl", LONGEST_OUTPUT).decode()
    except FileNotFoundError:
        text = read_bounded(folder / "stdout.txt", LONGEST_OUTPUT).decode(errors="replace")
        return "\n".join(line for line in text.splitlines() if line.lstrip().startswith("{"))
    except UnicodeDecodeError:
        raise UserError("records.jsonl is not UTF-8") from None


def _last_line(path: Path) -> str:
    text = path.read_bytes()[-4000:].decode(errors="replace").strip()
    return text.splitlines()[-1][:300] if text else "nothing on stderr"


def read_records(run: RunSpec, text: str) -> Told:
    """Read a trainer's JSON lines.

    Raises:
        UserError: naming the line and what is wrong with it, or the record that is missing.
    """
    told = Told()
    kept = {"record": told.records, "document": told.documents, "curve": told.curve}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = parse_object(line)
        except ValueError as error:
            raise UserError(f"records, line {number}: {error}") from None
        if "status" in row:
            if row["status"] not in ("finished", "diverged", "failed"):
                raise UserError(f"records, line {number}: status must be finished, diverged or failed")
            told.status, told.reason = row["status"], str(row.get("reason", ""))[:500]
            continue
        kind = row.pop("type", "record")
        if kind not in _KINDS:
            raise UserError(
                f"records, line {number}: type {kind!r} is none of {', '.join(_KINDS)}{nearest(str(kind), _KINDS)}"
            )
        kept[kind].append(_checked(run, kind, row, f"records, line {number}"))
    found = {(r["budget"], r["stage"]): r for r in told.records}
    told.records = list(found.values())
    if told.status == "finished":
        for budget in run.train.budgets:
            if (budget, "annealed") not in found:
                raise UserError(
                    f"the trainer gave no record of budget {budget} after the decay (stage annealed)"
                )
    return told


def _checked(run: RunSpec, kind: str, row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row whose every value is of its column's type, with what may be left out."""
    columns = _KINDS[kind]
    for name in _NEEDED[kind]:
        if name not in row:
            raise UserError(f"{where}: {name} is missing")
    out: dict[str, Any] = {}
    for name, value in row.items():
        if name not in columns:
            raise UserError(f"{where}: unknown key {name!r}{nearest(name, columns)}")
        if value is not None and not _fits(value, columns[name]):
            raise UserError(f"{where}: {name} = {str(value)[:40]!r} must be {_WORDS[columns[name]]}")
        out[name] = float(value) if columns[name] == "f" and value is not None else value
    if kind == "curve":
        return {"phase": "trunk", "lr": None, "value_lr": None, "train_seconds": None} | out
    out.setdefault("stage", "annealed")
    if out["stage"] not in STAGES:
        raise UserError(f"{where}: stage = {out['stage']!r} must be {' or '.join(STAGES)}")
    if out["budget"] not in run.train.budgets:
        raise UserError(f"{where}: budget {out['budget']} is none of this run's, {list(run.train.budgets)}")
    if kind == "record":
        if out["loss"] is None:
            raise UserError(f"{where}: loss is missing")
        out.setdefault("tokens", out["budget"])
    return out


def _fits(value: Any, kind: str) -> bool:
    if kind == "s":
        return isinstance(value, str) and len(value) <= 10_000
    if kind == "F":
        return isinstance(value, list) and all(_fits(item, "f") for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind == "f" else int):
        return False
    return math.isfinite(value) and abs(value) < (2**63 if kind == "i" else math.inf)
