"""In the manner of SQLite: the n-th write, rename, flush or listing of a sweep fails, for every n, and nothing is lost.

The sweep does what a real one does with its store (claims, checkpoints, records while it runs and at its end) and
leaves the arithmetic out, so that all of its hundreds of operations can be failed one after the other.
"""

import contextlib
import dataclasses
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from umscale.design.study import expand, parse
from umscale.errors import UserError
from umscale.execute.claimed_run import Reporter
from umscale.execute.job import read_job, write_job
from umscale.execute.workload import JOBS, Plan, make_plan
from umscale.spec import RunSpec
from umscale.store.store import RUN_TABLES, STAGES, Store
from umscale.training.record import spec_row
from umscale.trees import parse_toml

STUDY = """
name = "faults"
[axes]
top_m = [2, 4]
[model]
d_model = 32
n_layers = 1
n_heads = 2
ffn = {d_ffn = 32}
memory = {n_keys = 8, top_m = 2, d_key = 8, d_pre_value = 8, d_value = 8}
[data]
corpus = "kjv"
seq_len = 32
[train]
budgets = [5000]
batch_size = 4
warmup_tokens = 500
precision = "float32"
"""
ERRORS = (errno.EIO, errno.ENOSPC)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Untrained(Plan):
    """Runs that write all that a run writes."""

    def train(self, store: Store, run: RunSpec, report: Reporter, device_name: str) -> None:
        run_id = run.run_id
        work = f"{store.checkpoint_folder(run_id)}/trunk.safetensors"
        done = []
        for stage in STAGES:
            with store.files.writing(work) as path:
                path.write_bytes(f"{run_id} {stage}".encode() * 100)
            key = {"budget": 5000, "stage": stage}
            done.append(key | {"loss": float(run.model.memory.top_m), "loss_ema": 1.0})  # type: ignore[union-attr]
            rows = {
                "documents": [
                    key | {"document": f"d{i}", "n_tokens": 3, "n_bytes": 9, "nats": 1.0} for i in range(3)
                ],
                "curve": [{"phase": "trunk", "tokens": 5000, "loss": 2.0}],
            }
            status = "finished" if stage == STAGES[-1] else "running"
            store.write_run(spec_row(run), self.study, status=status, records=done, **rows)
        store.clear_work(run_id)


class Faults:
    """Fails the ``nth`` call of one kind with an error, and counts the calls; 0 fails none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind, self.nth, self.error = "", 0, errno.EIO
        self.counts = dict.fromkeys(("write", "rename", "fsync", "listing", "unlink"), 0)
        for kind, owner, name in (
            ("write", Path, "write_bytes"),
            ("rename", Path, "replace"),
            ("fsync", os, "fsync"),
            ("listing", os, "scandir"),
            ("unlink", Path, "unlink"),
        ):
            monkeypatch.setattr(owner, name, self._failing(kind, getattr(owner, name)))

    def _failing(self, kind: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.kind:
                self.counts[kind] += 1
                if kind == self.kind and self.counts[kind] == self.nth:
                    if kind == "write":  # as much as had room
                        plain(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    raise OSError(self.error, os.strerror(self.error), str(arguments[0]))
            return plain(*arguments, **options)

        return call

    @contextlib.contextmanager
    def strike(self, kind: str, nth: int, error: int) -> Iterator[None]:
        self.kind, self.nth, self.error = kind, nth, error
        self.counts = dict.fromkeys(self.counts, 0)
        try:
            yield
        finally:
            self.kind = ""


@pytest.fixture(scope="module")
def study():
    return parse(parse_toml(STUDY), "faults.toml")


def sweep(root: Path, study) -> None:
    """What ``umscale sweep`` and one worker do."""
    store = Store.create(root)
    store.repair()
    cells = expand(study, "float32")
    store.write_design(study, cells)
    planned = make_plan(study.name, cells)
    plan = Untrained(study=planned.study, runs=planned.runs)
    read_job(store, write_job(store, plan), JOBS)
    plan.work(Store.open(root), Reporter(io.StringIO()), "cpu")


def tables(root: Path) -> dict[str, list[str]]:
    store = Store.open(root)
    found = {}
    for table in (*RUN_TABLES, "cells"):
        rows = ({k: v for k, v in row.items() if k != "written_at"} for row in store.read(table).to_pylist())
        found[table] = sorted(json.dumps(row, sort_keys=True) for row in rows)
    assert store.damaged == []
    return found


def finished(root: Path) -> dict[str, list[str]]:
    """The rows of each finished run."""
    with contextlib.suppress(UserError):
        store = Store.open(root)
        over = [run_id for run_id, status in store.statuses().items() if status == "finished"]
        rows = [row | {"written_at": ""} for row in store.read("runs").to_pylist()]
        return {run_id: [json.dumps(row) for row in rows if row["run_id"] == run_id] for run_id in over}
    return {}


@pytest.mark.parametrize("kind", ["write", "rename", "fsync", "listing", "unlink"])
def test_whichever_operation_fails_nothing_is_lost(tmp_path, monkeypatch, study, kind):
    faults = Faults(monkeypatch)
    with faults.strike("none", 0, 0):
        sweep(tmp_path / "undisturbed", study)
    total = faults.counts[kind]
    expected = tables(tmp_path / "undisturbed")
    assert total > 5
    assert len(expected["runs"]) == 4
    failed = 0
    for nth in range(1, total + 1):
        root = tmp_path / f"{kind}-{nth}"
        error = ERRORS[nth % len(ERRORS)]
        try:
            with faults.strike(kind, nth, error):
                sweep(root, study)
        except (OSError, UserError) as caught:
            failed += 1
            assert "\n" not in str(caught)  # noqa: PT017 - not every fault need raise
        kept = finished(root)
        sweep(root, study)
        assert tables(root) == expected, f"{kind} {nth} of {total}"
        after = finished(root)
        assert {run_id: after[run_id] for run_id in kept} == kept, "what was finished stays as it was"
        assert [path.name for path in root.rglob(".*.tmp")] == []
        assert list((root / "work" / "claims").iterdir()) == []
    assert failed or kind == "unlink", "some operations cannot be done without"
