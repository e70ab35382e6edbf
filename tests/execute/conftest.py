"""One small study, what it gives when nothing goes wrong, and clusters on this machine."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from umscale.design.study import Study, expand, parse
from umscale.execute.local import LocalExecutor
from umscale.execute.workload import Plan, make_plan
from umscale.store.store import Store

TREE = {
    "name": "tiny",
    "axes": {"top_m": [2, 4]},
    "model": {
        "d_model": 32,
        "n_layers": 1,
        "n_heads": 2,
        "ffn": {"d_ffn": 32},
        "memory": {"n_keys": 8, "top_m": 2, "d_key": 8, "d_pre_value": 8, "d_value": 8},
    },
    "data": {"corpus": "kjv", "seq_len": 32, "validation_tokens": 3000},
    "train": {
        "budgets": [10_000],
        "batch_size": 4,
        "warmup_tokens": 1000,
        "checkpoint_seconds": 0.2,
        "precision": "float32",
    },
}
TIMES = (
    "train_seconds",
    "eval_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "input_seconds",
    "step_seconds",
    "checkpoint_seconds",
    "mfu",
    "peak_flops",
    "written_at",
)


def make_study(**train: Any) -> Study:
    """Return the study, with other training settings if any are given."""
    return parse(TREE | {"train": {**TREE["train"], **train}}, "tiny.toml")


@pytest.fixture(scope="session")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="session")
def plan(study: Study) -> Plan:
    return make_plan("tiny", expand(study, "float32"))


@pytest.fixture(scope="session")
def long_plan() -> Plan:
    """Runs that last for several seconds, long enough to be interrupted."""
    return make_plan("tiny", expand(make_study(budgets=[60_000]), "float32"))


@pytest.fixture(scope="session")
def long_run(long_plan: Plan) -> Plan:
    """One of them."""
    return dataclasses.replace(long_plan, runs=long_plan.runs[:1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture(scope="session")
def results() -> Callable[[Store], list[dict[str, Any]]]:
    """Return all that a store says, without the times at which it was said."""

    def rows(store: Store) -> list[dict[str, Any]]:
        found = [
            {k: v for k, v in row.items() if k not in TIMES}
            for table in ("runs", "documents")
            for row in store.read(table).to_pylist()
        ]
        assert store.damaged == []
        return sorted(found, key=lambda row: json.dumps(row, sort_keys=True))

    return rows


@pytest.fixture(scope="session")
def undisturbed(plan, results, tmp_path_factory):
    return _undisturbed(plan, results, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def long_undisturbed(long_plan, results, tmp_path_factory):
    return _undisturbed(long_plan, results, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def undisturbed_run(long_run, results, tmp_path_factory):
    return _undisturbed(long_run, results, tmp_path_factory.mktemp("undisturbed"))


def _undisturbed(plan: Plan, results: Any, folder: Path) -> list[dict[str, Any]]:
    store = Store.create(folder / "store")
    with LocalExecutor(store, plan, workers=1) as executor:
        executor.run(lambda number, event: None)
    return results(store)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Slurm on loopback, for this process and its children."""
    pytest.importorskip("submitit")
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("slurm_cluster.py"), tmp_path_factory.mktemp("slurm")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        reason = process.communicate()[1].strip()
        if reason.startswith("not installed"):
            pytest.skip(f"Slurm: {reason}")
        raise AssertionError(reason)
    os.environ["SLURM_CONF"] = line.partition("=")[2]
    yield
    del os.environ["SLURM_CONF"]
    process.communicate()


@pytest.fixture
def run_umscale(source_paths: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command in a process of its own, as a user would."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "umscale_cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": source_paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A suite started in the background inherits an ignored SIGINT; a user's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    return start
