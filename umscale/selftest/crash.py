"""The crash test: small sweeps of real processes, disturbed at random moments in every way that is known to happen.

An undisturbed sweep gives the table to reach. Then, sweep after sweep in stores of their own, faults strike: worker or
parent or all are killed, workers hang, the disk fills up, the store cannot be written, clocks jump, a second sweep
comes in, files are cut short or lose a bit. Each sweep is restarted until it is done, and then:

- no finished result was lost on the way, and none changed;
- no row is there twice;
- every restart repeated at most one checkpoint interval, plus the step or evaluation it was in the middle of;
- all tables are bitwise those of the undisturbed sweep.
"""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umscale.files import write_text
from umscale.processes import start_time
from umscale.selftest.fork_server import Child, alive, spawn, start_fork_server
from umscale.selftest.instrument import (
    AMBUSH_VARIABLE,
    CLOCK_VARIABLE,
    FILE_VARIABLE,
    STEPS_VARIABLE,
    STRUCK,
    WAITING,
)
from umscale.selftest.steps import read_logs, repetitions, whole_order
from umscale.store.leases import Claim
from umscale.store.store import FINAL, RUN_TABLES, Store

WORKERS = 2
N_RUNS = 4
"""Of the study below."""
CHECKPOINT_SECONDS = 0.3
STALE_SECONDS = 2.0
DISK_BYTES = 64 << 20
PATIENCE_SECONDS = 180.0
"""A sweep that makes no progress for this long has failed."""
KILLS_PER_OTHER_FAULT = 8
CLOCK_JUMP_SECONDS = 100_000.0
AIM_STEPS = 16
"""Steps of which one, at random, is the last that a kill waits for: with fewer, sweeps would hardly get on."""
AIM_SECONDS = 0.15
"""After that step, within which a kill strikes: some more steps, or a checkpoint."""
STEP_BYTES = 50
"""Of a step's line in a worker's log, about."""
AMBUSH_WRITES = 12
"""Flushes and renames within which a kill among them strikes: the files of a checkpoint or of a record."""

STUDY = f"""
name = "crash"
[axes]
top_m = [2, 4]
n_keys = [8, 16]
[model]
d_model = 32
n_layers = 1
n_heads = 2
[model.ffn]
d_ffn = 32
[model.memory]
n_keys = 8
top_m = 2
d_key = 8
d_pre_value = 8
d_value = 8
[data]
corpus = "kjv"
seq_len = 32
validation_tokens = 2000
[train]
budgets = [5000, 10000]
batch_size = 4
warmup_tokens = 500
checkpoint_seconds = {CHECKPOINT_SECONDS}
precision = "float32"
"""

_NOT_RESULTS = (
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
"""Columns that say how a result came about."""

Rows = dict[str, list[dict[str, Any]]]


@dataclass(kw_only=True, slots=True)
class Tally:
    """What became of the faults of one kind."""

    rounds: int = 0
    skipped: str = ""
    """Why this machine cannot be given this fault."""


@dataclass(kw_only=True, slots=True)
class Totals:
    """Result of the crash test."""

    seed: int
    tallies: dict[str, Tally]
    sweeps: int = 0
    kills: int = 0
    """Processes killed or found dead with SIGKILL by this test."""
    aimed: int = 0
    """Kills that struck while steps were being done."""
    writing: int = 0
    """Kills right before or after the flush or rename of a file."""
    finished: int = 0
    """Finished results that were looked at again after a fault."""
    lost: int = 0
    changed: int = 0
    doubled: int = 0
    restarts: int = 0
    """Times that a run was continued by another process."""
    worst_repeated: float = 0.0
    """CPU seconds of training that one restart repeated, at most."""
    too_much_repeated: int = 0
    redone: int = 0
    """Runs trained again because their files had been damaged on purpose."""
    quarantined: int = 0
    unequal: int = 0
    """Sweeps whose tables differ from the undisturbed ones."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, changed or repeated beyond an interval."""
        return not self.problems


def crash(rounds: int, seed: int, folder: Path, progress: Callable[[str], None]) -> Totals:
    """Run the crash test with ``rounds`` kills, and one fault of another kind for every few of them.

    Args:
        seed: of what strikes when; the processes' own timing stays as it happens to be.
        folder: an empty folder for stores and logs.
        progress: told a line for each sweep.
    """
    began = time.monotonic()
    totals = Totals(seed=seed, tallies={name: Tally() for name in FAULTS})
    with Scene(folder, random.Random(seed), totals, progress) as scene:
        progress("an undisturbed sweep ...")
        try:
            scene.undisturbed()
            faults = _program(rounds, scene)
            while faults:
                _disturbed(scene, faults)
                progress(f"{totals.kills} kills, {totals.sweeps - 1} sweeps, {len(totals.problems)} problems")
        except Failed as error:
            scene.problem(str(error))
    totals.seconds = time.monotonic() - began
    return totals


def _disturbed(scene: "Scene", faults: list[str]) -> None:
    """Bring one sweep to its end through as many of the faults as there is time for."""
    scene.begin()
    while not scene.done():
        scene.keep_going()
        if faults:
            name = faults.pop()
            if FAULTS[name](scene):
                scene.totals.tallies[name].rounds += 1
            else:  # not possible just now
                faults.insert(max(0, len(faults) - 2), name)
            scene.check_results()
        else:
            time.sleep(0.2)
    scene.end()
    scene.check_sweep()


class Failed(Exception):
    """A sweep got stuck or ended in a way that it must not; the message says how."""


def _program(rounds: int, scene: "Scene") -> list[str]:
    """Return the names of the faults to come, last first."""
    kills = [KILLS_IN_TURN[i % len(KILLS_IN_TURN)] for i in range(rounds)]
    others = []
    for name in FAULTS:
        if name in KILLS_IN_TURN:
            continue
        if reason := scene.cannot(name):
            scene.totals.tallies[name].skipped = reason
        else:
            others.append(name)
    count = max(rounds // KILLS_PER_OTHER_FAULT, len(others))
    program = kills + [others[i % len(others)] for i in range(count)]
    scene.random.shuffle(program)
    return program


# ---------------------------------------------------------------------------------------------------------
# The scene


class Scene:
    """A store, the sweeps on it, and what is known of its results."""

    def __init__(
        self, folder: Path, source: random.Random, totals: Totals, say: Callable[[str], None]
    ) -> None:
        self.folder, self.random, self.totals, self.say = folder, source, totals, say
        self.sweeps: list[Child] = []
        self.environment: dict[str, str] = {}
        self.expected: Rows = {}
        self.order: dict[str, list[tuple[str, int]]] = {}
        """Each run's steps as one process does them."""
        self.study = folder / "crash.toml"
        self.study.write_text(STUDY, encoding="utf-8")
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.ambush = folder / "ambush"
        self.ambush.mkdir()
        self.socket = Path(tempfile.mkdtemp(prefix="umscale-")) / "forks"  # its path must be short

    def __enter__(self) -> "Scene":
        self.server = start_fork_server(self.socket)
        self.mounted = _mount(self.disk)
        return self

    def __exit__(self, *exception: object) -> None:
        self._kill_all()
        if self.totals.problems and self.mounted:
            shutil.copytree(self.disk, self.folder / "stores")
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()
        shutil.rmtree(self.socket.parent, ignore_errors=True)
        if self.mounted:
            subprocess.run(["umount", str(self.disk)], check=False, capture_output=True)

    def cannot(self, name: str) -> str:
        """Return why a fault cannot be made here; empty if it can."""
        if name == "read-only store" and not self.mounted and os.geteuid() == 0:
            return "mounting is not allowed here, and root may write everywhere"
        return ""

    # -- sweeps -------------------------------------------------------------------------------------------

    def undisturbed(self) -> None:
        """Sweep without faults and note the results."""
        self.begin()
        self.start()
        while not self.done():
            self.keep_going()
            time.sleep(0.2)
        self.end()
        self.expected = results(self.store)
        self.order = whole_order(read_logs(self.steps))

    def begin(self) -> None:
        """Make a new store."""
        number = self.totals.sweeps
        self.root = self.disk / f"store-{number}"
        self.steps = self.folder / f"steps-{number}"
        self.steps.mkdir()
        self.messages = self.folder / f"messages-{number}.txt"
        self.store = Store.create(self.root)
        self.store.set_stale_seconds(STALE_SECONDS)
        self.finished: set[str] = set()
        self.wrong: set[str] = set()
        """Finished, but not as in the undisturbed sweep."""
        self.redone: dict[str, float] = {}
        """When files of a run were first damaged."""
        self.moved, self.moved_at = 0, time.monotonic()

    def start(self, limit_bytes: int = 0) -> Child:
        """Start a sweep, whose processes may write no file longer than ``limit_bytes`` if there is a limit."""
        arguments = [str(self.root), str(self.study), str(WORKERS), str(self.socket)]
        environment = dict(os.environ) | {
            "OMP_NUM_THREADS": "1",
            STEPS_VARIABLE: str(self.steps),
            FILE_VARIABLE: str(limit_bytes),
            AMBUSH_VARIABLE: str(self.ambush),
            **self.environment,
        }
        with self.messages.open("ab") as messages:
            sweep = spawn(
                self.socket, "umscale.selftest.disturbed_sweep", arguments, environment, messages, hear=False
            )
        self.sweeps.append(sweep)
        return sweep

    def keep_going(self) -> None:
        """Start a sweep unless one is running, and see that there is progress."""
        if self.unfinished() and not self.sweeps:
            self.start()
        moved = max((path.stat().st_mtime_ns for path in self.steps.iterdir()), default=0)
        if moved != self.moved:
            self.moved, self.moved_at = moved, time.monotonic()
        if time.monotonic() - self.moved_at > PATIENCE_SECONDS:
            raise Failed(f"no step in {PATIENCE_SECONDS:.0f} s: {self.last_words()}")

    def done(self) -> bool:
        """Whether all runs are over and no sweep is left."""
        return not self.unfinished() and not self.sweeps

    def unfinished(self) -> bool:
        """Whether there are runs that are not over; lets go of sweeps that have ended, rightly."""
        for sweep in list(self.sweeps):
            code = sweep.poll()
            if code is not None:
                self.sweeps.remove(sweep)
                if code not in (0, -signal.SIGKILL):
                    raise Failed(f"a sweep ended with exit code {code}: {self.last_words()}")
        statuses = Store(self.root).statuses()
        return len(statuses) < N_RUNS or not set(statuses.values()) <= set(FINAL)

    def end(self) -> None:
        """Leave no process of this store running."""
        self._kill_all()
        self.environment = {}
        self.totals.sweeps += 1

    def last_words(self) -> str:
        """Return the end of what the sweeps wrote to stderr."""
        lines = self.messages.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "(it said nothing)"

    def workers(self) -> list[int]:
        """Return the worker processes on this store."""
        return alive(self.socket, "umscale.execute.worker")

    def claims(self, seconds: float = 30.0) -> dict[str, Claim]:
        """Return who trains what here, waiting until someone does; nothing if the sweep ends before."""
        deadline = time.monotonic() + seconds
        while True:
            alive = {run_id: claim for run_id, claim in self.store.claimed().items() if start_time(claim.pid)}
            if alive:
                return alive
            if time.monotonic() >= deadline or all(sweep.poll() is not None for sweep in self.sweeps):
                return {}
            time.sleep(0.05)

    def aim(self, seconds: float = 20.0) -> bool:
        """Wait for some training steps and a random time that ends among the next ones; false if none came.

        Left to chance, most kills would hit workers that start, prepare or evaluate, where there is little to lose.
        """
        deadline = time.monotonic() + seconds
        wanted = self.steps_logged() + 1 + STEP_BYTES * self.random.randrange(AIM_STEPS)
        while self.steps_logged() < wanted:
            if time.monotonic() >= deadline or all(sweep.poll() is not None for sweep in self.sweeps):
                return False
            time.sleep(0.005)
        self.pause(AIM_SECONDS)
        return True

    def steps_logged(self) -> int:
        """Return a number that grows with every step that any worker does."""
        sizes = []
        for path in self.steps.iterdir():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return sum(sizes)

    def stepping(self, seconds: float = 0.1) -> bool:
        """Whether a worker has done a step within the last moments, as near as its log tells."""
        now = time.time()
        return any(now - path.stat().st_mtime < seconds for path in self.steps.iterdir())

    def pause(self, seconds: float) -> None:
        """Wait for a random time."""
        time.sleep(self.random.uniform(0.0, seconds))

    def kill(self, pid: int) -> None:
        """Kill a process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.totals.kills += 1

    def kill_everything(self) -> None:
        """Kill all processes at once, as when the machine goes down."""
        for pid in [*(sweep.pid for sweep in self.sweeps), *self.workers()]:
            self.kill(pid)
        self._kill_all()

    def _kill_all(self) -> None:
        for sweep in self.sweeps:
            sweep.kill()
            sweep.wait()
        self.sweeps.clear()
        while pids := self.workers():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def stop(self) -> None:
        """Let all sweeps stop cleanly, and workers that have outlived theirs."""
        for sweep in self.sweeps:
            sweep.terminate()
        for sweep in self.sweeps:
            try:
                sweep.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failed(f"a sweep was asked to stop and did not: {self.last_words()}") from None
        self.sweeps.clear()
        self.wait_for_workers(self.workers())

    def wait_for_workers(self, pids: list[int]) -> None:
        """Wait for the end of workers whose sweep is gone; they must notice."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not set(pids).isdisjoint(self.workers()):
            if time.monotonic() > deadline:
                raise Failed("workers go on long after their sweep has ended")
            time.sleep(0.02)

    # -- checks -------------------------------------------------------------------------------------------

    def check_results(self) -> None:
        """See that what was finished before is still there, once and unchanged."""
        store = Store(self.root)
        before = self._over(
            store
        )  # sweeps go on meanwhile: what was over before and after was over in between
        found = results(store)
        self._check_doubled(found)
        statuses = store.statuses()
        now = {run_id for run_id, status in statuses.items() if status in FINAL}
        for run_id in self.finished - now:
            self.totals.lost += 1
            self.problem(f"the finished run {run_id} was lost")
        for run_id in (before & now) - self.wrong:
            self.totals.finished += 1
            if _rows(found, run_id) != _rows(self.expected, run_id):
                self.wrong.add(run_id)
                self.totals.changed += 1
                difference = _difference(_rows(found, run_id), _rows(self.expected, run_id))
                self.problem(
                    f"run {run_id} has {statuses[run_id]}, not as in the undisturbed sweep: {difference}"
                )
        self.finished = now

    def _over(self, store: Store) -> set[str]:
        return {run_id for run_id, status in store.statuses().items() if status in FINAL}

    def check_sweep(self) -> None:
        """Compare a finished sweep with the undisturbed one, and count what was done twice."""
        self.check_results()
        found = results(self.store)
        for table in RUN_TABLES:
            if found[table] != self.expected[table]:
                self.totals.unequal += 1
                difference = _difference(found[table], self.expected[table])
                self.problem(f"the table {table} differs from the undisturbed one: {difference}")
        for repetition in repetitions(read_logs(self.steps), self.order):
            self.totals.restarts += 1
            if repetition.began >= self.redone.get(repetition.run_id, math.inf):
                continue
            self.totals.worst_repeated = max(self.totals.worst_repeated, repetition.seconds)
            if repetition.seconds > CHECKPOINT_SECONDS + repetition.allowance:
                self.totals.too_much_repeated += 1
                self.problem(f"run {repetition.run_id} repeated {repetition.seconds:.2f} s of training")
        self.totals.redone += len(self.redone)
        left = [path.name for path in self.root.rglob(".*.tmp")]
        Store(self.root).repair()
        if still := [path.name for path in self.root.rglob(".*.tmp")]:
            self.problem(f"{len(still)} of {len(left)} temporary files of killed processes are left")
        self.totals.quarantined += len(list((self.root / "quarantine").glob("*")))
        text = self.messages.read_text(encoding="utf-8", errors="replace")
        if "Traceback" in text:
            self.problem(f"a sweep ended with a traceback: {self.last_words()}")
        if not self.totals.problems:
            shutil.rmtree(self.root)

    def _check_doubled(self, found: Rows) -> None:
        for table, key in (
            ("runs", ("run_id", "budget", "stage")),
            ("documents", ("run_id", "budget", "stage", "document")),
            ("curves", ("run_id", "phase", "tokens")),
            ("probes", ("run_id", "budget", "stage", "task")),
            ("evaluations", ("run_id", "budget", "stage", "evaluation", "metric")),
        ):
            keys = [tuple(row[name] for name in key) for row in found[table]]
            if twice := len(keys) - len(set(keys)):
                self.totals.doubled += twice
                self.problem(f"{twice} rows of {table} are there twice")

    def problem(self, text: str) -> None:
        problem = f"sweep {self.totals.sweeps}: {text}"
        self.say(problem)
        self.totals.problems.append(problem)


def results(store: Store) -> Rows:
    """Return what a store's tables say, without how it came about, in a fixed order."""
    found: Rows = {}
    for table in RUN_TABLES:
        rows = [
            {k: v for k, v in row.items() if k not in _NOT_RESULTS} for row in store.read(table).to_pylist()
        ]
        found[table] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
    return found


def _rows(found: Rows, run_id: str) -> list[dict[str, Any]]:
    return [row for table in RUN_TABLES for row in found[table] if row["run_id"] == run_id]


def _difference(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    if reason := next((row["reason"] for row in found if row.get("reason")), ""):
        return str(reason)
    if len(found) != len(expected):
        return f"{len(found)} rows, not {len(expected)}"
    pairs = [
        (name, row[name], other[name]) for row, other in zip(found, expected, strict=True) for name in row
    ]
    name, value, wanted = next((name, a, b) for name, a, b in pairs if a != b)
    return f"{name} = {value!r}, not {wanted!r}"[:200]


def _mount(folder: Path) -> bool:
    """Mount a small filesystem in memory, where that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "umscale-selftest", str(folder)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------
# Faults: each returns whether it could strike


def kill_worker(scene: Scene) -> bool:
    """Kill a worker that trains."""
    scene.claims()
    if not scene.aim():
        return False
    claims = scene.claims(0)
    if not claims:
        return False
    scene.totals.aimed += scene.stepping()
    scene.kill(scene.random.choice(list(claims.values())).pid)
    return True


def kill_writer(scene: Scene) -> bool:
    """Kill a worker just before or just after it flushes a file or renames it into its place."""
    for path in scene.ambush.iterdir():
        path.unlink()
    if not scene.claims():
        return False
    waiting, struck = scene.ambush / WAITING, scene.ambush / STRUCK
    write_text(waiting, str(scene.random.randrange(AMBUSH_WRITES)))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not struck.exists():
        if time.monotonic() > deadline or all(sweep.poll() is not None for sweep in scene.sweeps):
            waiting.unlink(missing_ok=True)
            return struck.exists()
        time.sleep(0.01)
    scene.totals.kills += 1
    scene.totals.writing += 1
    return True


def kill_parent(scene: Scene) -> bool:
    """Kill a sweep; its workers must notice and stop, while perhaps the next sweep has begun already."""
    scene.claims()
    scene.pause(1.2)
    running = [sweep for sweep in scene.sweeps if sweep.poll() is None]
    if not running:
        return False
    sweep = scene.random.choice(running)
    workers = scene.workers()
    scene.kill(sweep.pid)
    sweep.wait()
    scene.sweeps.remove(sweep)
    if scene.random.random() < 0.5:
        return True
    if not scene.sweeps:
        scene.wait_for_workers(workers)
    return True


def kill_all(scene: Scene) -> bool:
    """Kill everything at once."""
    if not scene.claims() or not scene.aim():
        return False
    scene.totals.aimed += scene.stepping()
    if all(sweep.poll() is not None for sweep in scene.sweeps):
        return False
    scene.kill_everything()
    return True


def hang(scene: Scene) -> bool:
    """Stop a worker until its run is taken over, and then let it wake up."""
    claims = scene.claims()
    scene.pause(0.8)
    claims = scene.claims(0)
    if not claims:
        return False
    run_id, claim = scene.random.choice(list(claims.items()))
    try:
        os.kill(claim.pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while True:
            holder = scene.store.claimed().get(run_id)
            if (holder is not None and holder.token != claim.token) or scene.store.status(run_id) in FINAL:
                return True
            if not start_time(claim.pid) and not scene.workers():
                return True
            if time.monotonic() > deadline:
                raise Failed("the run of a worker that hangs was not taken over")
            scene.keep_going()
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(claim.pid, signal.SIGCONT)


def full_disk(scene: Scene) -> bool:
    """Leave no room on the disk: the sweep must say so in one line, and go on when there is room."""
    scene.stop()
    if scene.done():
        return False
    if not scene.mounted:
        return _refused(scene, scene.start(limit_bytes=4096), "ulimit")
    scene.start()
    scene.claims()
    scene.pause(0.5)
    ballast = scene.disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as stream:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        stream.write(bytes(size))
        return all(_refused(scene, sweep, "is full") for sweep in list(scene.sweeps))
    finally:
        ballast.unlink()


def read_only(scene: Scene) -> bool:
    """Make the store read-only: the sweep must say so in one line."""
    scene.stop()
    if scene.done():
        return False
    with _write_protected(scene):
        return _refused(scene, scene.start(), "cannot be written")


@contextlib.contextmanager
def _write_protected(scene: Scene) -> Iterator[None]:
    if scene.mounted:
        subprocess.run(["mount", "-o", "remount,ro", str(scene.disk)], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(scene.disk)], check=True)
        return
    folders = [scene.root, *(path for path in scene.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


def _refused(scene: Scene, sweep: Child, words: str) -> bool:
    """See that a sweep ends with exit code 2 and a line with ``words``; false if it was done before."""
    code = sweep.wait(PATIENCE_SECONDS)
    scene.sweeps.remove(sweep)
    if code == 0:
        return False
    if code != 2 or words not in scene.last_words():
        raise Failed(f"exit code {code}, expected 2 and {words!r}: {scene.last_words()}")
    return True


def jump_clocks(scene: Scene) -> bool:
    """Go on under wall clocks that jump by days, with files that seem to come from the past and the future."""
    scene.stop()
    if scene.done():
        return False
    now = time.time()
    for path in scene.root.rglob("*"):
        if path.is_file():
            moment = now + scene.random.uniform(-CLOCK_JUMP_SECONDS, CLOCK_JUMP_SECONDS)
            os.utime(path, (moment, moment))
    scene.environment = {CLOCK_VARIABLE: str(CLOCK_JUMP_SECONDS)}
    scene.start()
    scene.claims()
    return True


def second_sweep(scene: Scene) -> bool:
    """Start another sweep of the same store beside the one that runs."""
    scene.claims()
    if all(sweep.poll() is not None for sweep in scene.sweeps):
        return False
    scene.start()
    scene.pause(2.0)
    return True


def damage_results(scene: Scene) -> bool:
    """Cut a result file short or flip a bit of it: it must be quarantined, and its run done again."""
    files = [path for table in RUN_TABLES for path in (scene.root / table).glob("*.parquet")]
    if not files:
        return False
    scene.kill_everything()
    path = scene.random.choice(sorted(files))
    _damage(path, scene.random)
    scene.redone.setdefault(path.stem, time.monotonic())
    scene.finished.discard(path.stem)
    scene.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    pattern = f"{path.parent.name}-{path.name}.*"
    while not list((scene.root / "quarantine").glob(pattern)):
        if time.monotonic() > deadline:
            raise Failed(f"{path.name} is damaged and was not quarantined")
        scene.keep_going()
        time.sleep(0.05)
    return True


def damage_checkpoint(scene: Scene) -> bool:
    """Cut a checkpoint short or flip a bit of it: its run must not go on from it."""
    scene.claims()
    scene.pause(1.0)
    files = sorted((scene.root / "work" / "checkpoints").glob("*/*.safetensors"))
    if not files:
        return False
    scene.kill_everything()
    path = scene.random.choice(files)
    if not path.exists():  # its run was just over
        return False
    _damage(path, scene.random)
    scene.redone.setdefault(path.parent.name, time.monotonic())
    return True


def _damage(path: Path, source: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if source.random() < 0.5:
        del content[source.randrange(len(content)) :]
    else:
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(bytes(content))


FAULTS: dict[str, Callable[[Scene], bool]] = {
    "worker killed": kill_worker,
    "worker killed as it writes": kill_writer,
    "sweep killed": kill_parent,
    "all killed at once": kill_all,
    "worker hangs": hang,
    "disk full": full_disk,
    "read-only store": read_only,
    "clocks jump": jump_clocks,
    "two sweeps at once": second_sweep,
    "damaged result": damage_results,
    "damaged checkpoint": damage_checkpoint,
}
KILLS_IN_TURN = (
    "worker killed",
    "sweep killed",
    "worker killed as it writes",
    "all killed at once",
    "worker killed",
)
