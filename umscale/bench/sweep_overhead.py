"""What a sweep costs beside the training itself: throughput of workers, scheduling, the store, the parent's memory.

Notable:
- Throughput stands beside processes that train the same runs with no store and nobody watching, in turns.
- Scheduling is measured with the training left out and all else as it is: workers (threads here) claim a run, write
  its rows, release it and report; the parent hears them and asks the store what is left.
- The store stands beside the same bytes written and flushed as plain files, and beside one Parquet file of all rows.
"""

import dataclasses
import json
import os
import queue
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umscale.design.study import load_study
from umscale.execute.claimed_run import Reporter
from umscale.execute.executor import Event, Executor, heard_within, parse_event, python_path
from umscale.execute.local import LocalExecutor
from umscale.execute.workload import Plan, make_plan
from umscale.machine import physical_cores, stamp
from umscale.processes import python_command
from umscale.spec import RunSpec, to_dict
from umscale.store.schema import STAGES
from umscale.store.store import Row, Store, schema
from umscale.training.record import spec_row

WALL_PARTS = (
    "start-up", "between runs", "data, model, checkpoints, records", "training", "evaluation", "idle tail", "runs"
)  # fmt: skip
SAMPLES = 10
"""How often the parent's memory is read while it schedules."""
WRITTEN_ALONE = 500
"""Files whose plain writing is timed for comparison."""


def bench_sweep(
    *,
    workers: int | None = None,
    seconds: float = 10.0,
    rounds: int = 3,
    runs: int = 10_000,
    records: int = 100_000,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure a sweep's overheads on this machine; all stores are temporary.

    Args:
        workers: the most workers to try; default the physical cores.
        seconds: of training that a run should take.
        rounds: of the throughput, each a sweep and its peer.
        runs: that are scheduled with their training left out.
        records: rows of the store that is written and scanned.
    """
    most = workers or physical_cores()
    with tempfile.TemporaryDirectory(prefix="umscale-bench-") as folder:
        root = Path(folder)
        reference = _reference()
        progress("training a run for its speed ...")
        run = _sized(reference, seconds)
        throughput = []
        for n_workers in range(1, most + 1):
            progress(f"{rounds} sweeps with {n_workers} workers, and as many without ...")
            throughput.append(_throughput(run, n_workers, rounds, root))
        progress(f"where the time of a sweep with {most} workers goes ...")
        wall = _wall(run, most, root)
        progress(f"scheduling {runs} runs without their training ...")
        scheduling = _scheduling(runs, most, root)
        progress(f"a store of {records} records ...")
        store = _store(reference, records, root)
    return {
        "machine": stamp()["machine"],
        "seconds_a_run": seconds,
        "wall": wall,
        "throughput": throughput,
        "scheduling": scheduling,
        "store": store,
    }


def _reference() -> RunSpec:
    from umscale.data.corpus import open_corpus
    from umscale.design.study import expand

    study = load_study("quickstart")
    cell = expand(study, "float32", open_corpus(study.reference.data.corpus))[0]
    assert cell.run is not None
    return cell.run


def _with_budget(run: RunSpec, steps: int) -> RunSpec:
    train = dataclasses.replace(
        run.train, budgets=(steps * run.tokens_per_step,), warmup_tokens=run.tokens_per_step
    )
    return dataclasses.replace(run, train=train)


def _sized(run: RunSpec, seconds: float) -> RunSpec:
    """Return the run with as many tokens as take so long here."""
    from umscale.execute.estimate import estimate, run_seconds

    step = estimate([run]).steps[0]
    short = _with_budget(run, 100)
    rest = run_seconds(short, step) - 100 * step
    return _with_budget(run, max(20, round((seconds - rest) / step)))


# ---------------------------------------------------------------------------------------------------------
# Throughput


def _throughput(run: RunSpec, n_workers: int, rounds: int, root: Path, runs_each: int = 2) -> dict[str, Any]:
    """Time sweeps of equal runs, and processes that train the same runs on their own, in turns."""
    runs = [dataclasses.replace(run, seed=seed) for seed in range(runs_each * n_workers)]
    ours, alone = [], []
    for i in range(rounds):
        for variant in ("ours", "alone") if i % 2 == 0 else ("alone", "ours"):
            began = time.perf_counter()
            if variant == "ours":
                store = Store.create(root / f"throughput-{n_workers}-{i}")
                with LocalExecutor(
                    store, Plan(study="bench", runs=tuple(runs)), n_workers, device="cpu"
                ) as executor:
                    executor.run(lambda number, event: None)
                ours.append(time.perf_counter() - began)
            else:
                _train_alone([runs[k::n_workers] for k in range(n_workers)], root)
                alone.append(time.perf_counter() - began)
    tokens = len(runs) * run.train.budgets[-1]
    return {
        "workers": n_workers,
        "runs": len(runs),
        "seconds": statistics.median(ours),
        "tokens_per_second": tokens / statistics.median(ours),
        "independent_seconds": statistics.median(alone),
        "efficiency": statistics.median(a / o for a, o in zip(alone, ours, strict=True)),
        "efficiencies": [a / o for a, o in zip(alone, ours, strict=True)],
    }


def _wall(run: RunSpec, n_workers: int, root: Path) -> dict[str, Any]:
    """Return where the wall time of a sweep goes, in seconds of all workers: one run more than they share equally."""
    runs = tuple(dataclasses.replace(run, seed=seed) for seed in range(n_workers + 1))
    store = Store.create(root / "wall")
    spent = dict.fromkeys(WALL_PARTS, 0.0)
    last: dict[int, float] = {}
    began = time.perf_counter()

    def on_event(number: int, event: Event) -> None:
        now = time.perf_counter()
        part = {"ready": "start-up", "start": "between runs", "end": "runs"}.get(event["event"])
        if part is not None:
            spent[part] += now - last.get(number, began)
            last[number] = now

    with LocalExecutor(store, Plan(study="bench", runs=runs), n_workers, device="cpu") as executor:
        executor.run(on_event)
    ended = time.perf_counter()
    spent["idle tail"] = sum(ended - moment for moment in last.values())
    ran = spent.pop("runs")
    records: dict[str, dict[str, Any]] = {}
    for row in store.read("runs").to_pylist():  # the last record of a run holds its sums
        if row["train_seconds"] >= records.get(row["run_id"], row)["train_seconds"]:
            records[row["run_id"]] = row
    spent["training"] = sum(row["train_seconds"] for row in records.values())
    spent["evaluation"] = sum(row["eval_seconds"] for row in records.values())
    spent["data, model, checkpoints, records"] = ran - spent["training"] - spent["evaluation"]
    return {"workers": n_workers, "runs": len(runs), "seconds": ended - began, "parts": spent}


def _train_alone(shares: Sequence[Sequence[RunSpec]], root: Path) -> None:
    processes = []
    for i, share in enumerate(shares):
        path = root / f"share-{i}.json"
        path.write_text(json.dumps([to_dict(run) for run in share]), encoding="utf-8")
        processes.append(
            subprocess.Popen(
                python_command("umscale.bench.independent", str(path)),
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()},
            )
        )
    for process in processes:
        if code := process.wait():
            raise RuntimeError(f"a process that trains on its own ended with exit code {code}")


# ---------------------------------------------------------------------------------------------------------
# Scheduling


@dataclass(frozen=True, kw_only=True, slots=True)
class Untrained(Plan):
    """A plan whose runs are claimed, written and reported, but not trained."""

    def train(self, store: Store, run: RunSpec, report: Reporter, device_name: str) -> None:
        """Write the rows of a run as if it had been trained."""
        run_id = run.run_id
        report("start", run=run_id, token=store.token(run_id))
        records = _records(run)
        store.write_run(spec_row(run), self.study, status="finished", records=records)
        for record in records:
            report("record", run=run_id, **record)
        store.clear_work(run_id)
        report("end", run=run_id, status="finished", reason="")


def _records(run: RunSpec, loss: float = 1.0) -> list[Row]:
    return [
        {"budget": budget, "stage": stage, "loss": loss, "loss_ema": loss}
        for budget in run.train.budgets
        for stage in STAGES
    ]


class _Lines:
    """A stream that hands each line to a queue, as a pipe from a worker would."""

    def __init__(self, number: int, heard: "queue.Queue[tuple[int, Event]]") -> None:
        self.number, self.heard = number, heard

    def write(self, line: str) -> None:
        if (event := parse_event(line)) is not None:
            self.heard.put((self.number, event))

    def flush(self) -> None:
        """Nothing is held back."""


class ThreadExecutor(Executor):
    """Workers as threads of this process, each with its own view of the store."""

    def __init__(self, store: Store, job: Plan, workers: int) -> None:
        super().__init__(store, job, workers)
        self.heard: queue.Queue[tuple[int, Event]] = queue.Queue()
        self.threads: list[threading.Thread] = []

    def start(self, numbers: Sequence[int]) -> None:
        """Start a thread for each number."""
        for number in numbers:
            self.threads.append(threading.Thread(target=self._work, args=(number,)))
            self.threads[-1].start()

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what workers reported."""
        return heard_within(self.heard, seconds)

    def kill(self, number: int) -> None:
        """Threads are not killed; these do not hang."""

    def stop(self) -> None:
        """Wait for the threads."""
        for thread in self.threads:
            thread.join()

    def _work(self, number: int) -> None:
        report = Reporter(_Lines(number, self.heard))  # type: ignore[arg-type]
        self.job.work(Store.open(self.store.address), report, "cpu")
        report("exit", code=0, log="")


def _scheduling(n_runs: int, n_workers: int, root: Path) -> dict[str, Any]:
    """Schedule runs without training them."""
    from umscale.design.study import expand

    store = Store.create(root / "scheduling")
    study = load_study("quickstart")
    seeds = tuple(range(-(-n_runs // 12)))
    study = dataclasses.replace(study, axes={**study.axes, "seed": seeds})
    began = time.perf_counter()
    cells = expand(study, "float32")[:n_runs]
    planned = make_plan("bench", cells)
    plan = Untrained(study="bench", runs=planned.runs)
    planning = time.perf_counter() - began
    memory: list[int] = []
    ended = 0

    def on_event(number: int, event: Event) -> None:
        nonlocal ended
        if event["event"] == "end":
            ended += 1
            if ended % max(1, n_runs // SAMPLES) == 0:
                memory.append(_resident_bytes())

    began = time.perf_counter()
    with ThreadExecutor(store, plan, n_workers) as executor:
        executor.run(on_event)
    scheduling = time.perf_counter() - began
    assert plan.remaining(store) == 0
    began = time.perf_counter()
    for spec in plan.runs[: n_runs // 10]:
        store.write_run(spec_row(spec), "bench", status="finished", records=_records(spec))
    writing = (time.perf_counter() - began) / max(1, n_runs // 10)
    began = time.perf_counter()
    plan.remaining(Store.open(store.address))
    looking = time.perf_counter() - began
    return {
        "runs": len(plan.runs),
        "workers": n_workers,
        "planning_seconds_a_run": planning / len(plan.runs),
        "seconds_a_run": scheduling / len(plan.runs),
        "writing_seconds_a_run": writing,
        "first_look_seconds": looking,
        "memory_bytes": memory,
        "memory_growth_bytes": memory[-1] - memory[0] if memory else 0,
    }


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------------------------------------
# The store


def _store(run: RunSpec, n_records: int, root: Path) -> dict[str, Any]:
    """Write and scan a store of many records."""
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    store = Store.create(root / "many")
    per_run = len(STAGES) * len(run.train.budgets)
    n_runs = -(-n_records // per_run)
    began = time.perf_counter()
    for seed in range(n_runs):
        store.write_run(
            spec_row(dataclasses.replace(run, seed=seed)),
            "bench",
            status="finished",
            records=_records(run, 1.0 + seed),
        )
    writing = time.perf_counter() - began
    paths = sorted((store.root / "runs").glob("*.parquet"))
    plain = _write_plainly([path.read_bytes() for path in paths[:WRITTEN_ALONE]], root / "plain")

    timings: dict[str, list[float]] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = step()
        timings.setdefault(name, []).append(time.perf_counter() - began)
        return result

    table = timed("first scan", lambda: Store.open(store.address).read("runs"))
    assert table.num_rows == n_runs * per_run, "no row may be missing"
    one = root / "one.parquet"
    pq.write_table(table, one, compression="zstd")
    for _ in range(3):
        timed("later scan", lambda: Store.open(store.address).read("runs"))
        timed("one file", lambda: pq.read_table(one))
        timed("statuses", lambda: Store.open(store.address).statuses())
    timed("pyarrow.dataset", lambda: ds.dataset(store.root / "runs", schema=schema("runs")).to_table())
    return {
        "records": table.num_rows,
        "files": n_runs,
        "bytes": sum(path.stat().st_size for path in paths),
        "writing_seconds_a_run": writing / n_runs,
        "plain_writing_seconds_a_file": plain,
        **{f"{name.replace(' ', '_')}_seconds": statistics.median(times) for name, times in timings.items()},
    }


def _write_plainly(contents: Sequence[bytes], folder: Path) -> float:
    """Return the seconds that writing and flushing a file takes, of the same sizes as the store's."""
    folder.mkdir()
    began = time.perf_counter()
    for i, content in enumerate(contents):
        with (folder / f"{i}").open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    return (time.perf_counter() - began) / len(contents)
