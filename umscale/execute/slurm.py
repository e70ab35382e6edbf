"""Workers as Slurm jobs, through submitit: arrays, time limits, preemption, requeueing.

Notable:
- What Slurm says about a job is only used to notice that it is gone; results count when the store has them.
- Before a time limit, and on preemption with a signal, Slurm sends SIGUSR2: the worker checkpoints and the job goes
  back to the queue by itself, also when nobody watches. A job that ended with work left is submitted again.
- submitit hands a job over as a pickle. These lie in a folder of the user's own (mode 700) beside the corpora, never
  in the store, so nothing that others can write is unpickled.
"""

import contextlib
import getpass
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from umscale.data.corpus import data_home
from umscale.errors import UserError
from umscale.execute.claimed_run import REPORT_VARIABLE
from umscale.execute.executor import (
    STOP_SECONDS,
    Event,
    Executor,
    parse_event,
    worker_command,
    worker_environment,
)
from umscale.execute.job import Job
from umscale.processes import SAFE_PATH_VARIABLE
from umscale.store.store import Store

if TYPE_CHECKING:
    import submitit

LOOK_SECONDS = 5.0
"""Between questions to the scheduler."""
WARNING_SECONDS = 90
"""How long before its time limit a job is told, so that it can write its checkpoint."""
REQUEUE_SECONDS = 20
"""Of that, what requeueing itself may take."""
AFTERTHOUGHT_SECONDS = 1.0
"""A SIGTERM may be followed by the SIGUSR2 that asks for a requeue within this time."""
UNSEEN_SECONDS = 15.0
"""A job that the queue does not list gets this long for its last words to reach a shared filesystem."""
REPORT_SECONDS = 5.0
"""Between two reports of progress: they go to files on a shared filesystem."""
TIME_LIMITS = 1000
"""So many of them send a job back to the queue."""
OPTIONS = {"time": "--time", "partition": "--partition", "cpus_per_task": "--threads", "array": "--workers"}
"""Parameters of sbatch with options of their own."""
RESERVED = ("signal", "open_mode", "output", "error", "requeue", "no_requeue", "wait", "parsable")
NUMBERS = ("signal_delay_s", "array_parallelism")
"""Parameters that submitit takes beside those of sbatch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What is asked of the scheduler for each worker.

    Raises:
        UserError: ``extra`` has a parameter that is not the user's to set.
    """

    minutes: int = 60
    partition: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further parameters of sbatch, such as ``account``, ``qos``, ``mem``, ``gres``."""

    def __post_init__(self) -> None:
        for key, value in self.extra.items():
            name = key.replace("-", "_")
            if name in OPTIONS:
                raise UserError(f"--slurm {key}: use {OPTIONS[name]} instead")
            if name in RESERVED:
                raise UserError(f"--slurm {key}: umscale needs to set it itself")
            if name in NUMBERS and not value.isdecimal():
                raise UserError(f"--slurm {key}={value}: must be a whole number")

    @property
    def warning_seconds(self) -> int:
        """How long before its time limit a job is told."""
        return int(self.extra.get("signal_delay_s", WARNING_SECONDS))

    def parameters(self, threads: int, setup: Sequence[str]) -> dict[str, Any]:
        """Return them as submitit takes them."""
        ours: dict[str, Any] = {
            "job_name": "umscale",
            "time": self.minutes,
            "cpus_per_task": threads,
            "signal_delay_s": self.warning_seconds,
            "wckey": None,
            "setup": list(setup),
        }
        if self.partition is not None:
            ours["partition"] = self.partition
        extra = {key.replace("-", "_"): value for key, value in self.extra.items()}
        ours |= {name: int(extra.pop(name)) for name in NUMBERS if name in extra}
        return ours | {"additional_parameters": {"requeue": True} | extra}


def minutes(text: str) -> int:
    """Read a time limit as sbatch does: ``90`` (minutes), ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM[:SS]``.

    Raises:
        UserError: it is none of these, or zero.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise UserError(f"--time {text!r}: give minutes, HH:MM:SS or D-HH:MM:SS")
    days, *parts = (int(part) if part else None for part in match.groups())
    given = [part for part in parts if part is not None]
    hours_first = days is not None or len(given) == 3
    units = (3600, 60, 1) if hours_first else (60, 1)
    seconds = 86400 * (days or 0) + sum(unit * part for unit, part in zip(units, given, strict=False))
    if not seconds:
        raise UserError(f"--time {text!r}: a job needs more than no time")
    return -(-seconds // 60)


# ---------------------------------------------------------------------------------------------------------
# Inside a job


class WorkerTask:
    """What runs inside a job: a worker process, whose reports go to the job's output file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], warning_seconds: int) -> None:
        self.command, self.environment = list(command), dict(environment)
        self.warning_seconds = warning_seconds
        self.pid = 0

    def __call__(self) -> None:
        """Run the worker to its end, and say how it ended."""
        told: list[int] = []

        def note(signum: int, frame: FrameType | None) -> None:
            told.append(signum)

        signal.signal(signal.SIGTERM, note)  # the worker gets its own: Slurm tells all processes of a job
        with _blocked(signal.SIGUSR2):  # a worker that is still starting must not die of the warning
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, env={**os.environ, **self.environment}
            )
        self.pid = process.pid
        while process.poll() is None:
            time.sleep(0.1)
        if told:
            time.sleep(AFTERTHOUGHT_SECONDS)
        _say("exit", code=process.returncode)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Stop the worker, with a checkpoint; submitit calls this on SIGUSR2 and then requeues the job."""
        import submitit

        deadline = time.monotonic() + max(1, self.warning_seconds - REQUEUE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, signal.SIGTERM)
        while _runs(self.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        _say("requeued")
        task = WorkerTask(self.command, self.environment, self.warning_seconds)
        return submitit.helpers.DelayedSubmission(task)


@contextlib.contextmanager
def _blocked(signum: signal.Signals) -> Iterator[None]:
    """Hold a signal back; a process started meanwhile inherits that, until it is ready for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event} | fields), flush=True)


def _runs(pid: int) -> bool:
    """Whether a child still runs. It is not reaped: the main thread, which this interrupts, is about to."""
    try:
        return bool(pid) and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


# ---------------------------------------------------------------------------------------------------------
# Outside


@dataclass(kw_only=True, slots=True)
class Submitted:
    """A job in the scheduler's hands."""

    job_id: str
    output: Path
    errors: Path
    position: int = 0
    """Up to where its output was read."""
    state: str = ""
    seen: float = field(default_factory=time.monotonic)
    """When the queue last listed it."""


class SlurmExecutor(Executor):
    """Does a job with ``workers`` Slurm jobs, each one worker process of ``threads`` threads.

    Raises:
        UserError: submitit is missing, or Slurm's commands are.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        workers: int,
        threads: int = 1,
        device: str = "auto",
        terms: Terms | None = None,
    ) -> None:
        check_slurm()
        import submitit

        super().__init__(store, job, workers)
        self.threads, self.device, self.terms = threads, device, terms or Terms()
        self.jobs: dict[int, Submitted] = {}
        self.looked = 0.0
        self.clean = True
        self.folder = data_home() / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.engine = submitit.SlurmExecutor(self.folder, max_num_timeout=TIME_LIMITS)

    def start(self, numbers: Sequence[int]) -> None:
        """Submit a job for each number, as one array."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        environment = worker_environment(self.store, self.threads) | {REPORT_VARIABLE: str(REPORT_SECONDS)}
        command = worker_command(self.store, self.name, self.threads, self.device, type(self.job).__module__)
        task = WorkerTask(command, environment, self.terms.warning_seconds)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # submitit's own `python -m` must not look into the folder it is submitted from either
        names = ("PYTHONPATH", SAFE_PATH_VARIABLE)
        setup = [f"export {name}={shlex.quote(environment[name])}" for name in names]
        self.engine.update_parameters(**self.terms.parameters(self.threads, setup))
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), self.engine.batch():
                jobs = [self.engine.submit(task) for _ in numbers]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise UserError(_refusal(str(error) + said.getvalue())) from None
        for number, job in zip(numbers, jobs, strict=True):
            self.jobs[number] = Submitted(
                job_id=job.job_id, output=Path(job.paths.stdout), errors=Path(job.paths.stderr)
            )

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what workers reported, and what became of their jobs."""
        time.sleep(seconds)
        found: list[tuple[int, Event]] = []
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            found += self._look()
        for number, job in list(self.jobs.items()):
            for event in _read_reports(job):
                if event["event"] == "exit":
                    self._forget(number, job, event["code"])
                    found.append((number, event | {"log": str(job.errors)}))
                    break
                found.append((number, event))
        return found

    def kill(self, number: int) -> None:
        """Kill a job's processes."""
        _command("scancel", "--signal=KILL", self.jobs[number].job_id)

    def stop(self) -> None:
        """Cancel jobs that wait, ask the others to checkpoint, cancel those that do not."""
        ids = [job.job_id for job in self.jobs.values()]
        if ids:
            _command("scancel", "--state=PENDING", *ids)
            _command(
                "scancel", "--signal=TERM", *ids
            )  # to the processes alone: the batch script would kill them
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                states = _states()
                if states is not None and not states.keys() & set(ids):
                    break
                time.sleep(0.5)
            else:
                _command("scancel", *ids)
        self.jobs.clear()
        if self.clean:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _look(self) -> list[tuple[int, Event]]:
        """Ask for the state of the jobs; one that is gone without a word is lost."""
        states = _states()
        if states is None:
            return []
        found: list[tuple[int, Event]] = []
        now = time.monotonic()
        for number, job in list(self.jobs.items()):
            state = states.get(job.job_id, "")
            if state:
                job.seen = now
                if state != job.state:
                    job.state = state
                    found.append((number, {"event": "queue", "state": state}))
            elif now - job.seen >= UNSEEN_SECONDS:
                found += [(number, event) for event in _read_reports(job) if event["event"] != "exit"]
                self._forget(number, job, None)
                found.append((number, {"event": "exit", "code": None, "log": str(job.errors)}))
        return found

    def _forget(self, number: int, job: Submitted, code: int | None) -> None:
        self.clean = self.clean and code == 0
        del self.jobs[number]


def check_slurm() -> None:
    """Raise UserError unless jobs can be submitted from here."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--executor slurm needs submitit: pip install 'umscale[slurm]'")
    for command in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise UserError(
                f"--executor slurm: no {command} here; run this where Slurm jobs can be submitted"
            )


def _read_reports(job: Submitted) -> list[Event]:
    """Return the events in whole lines that were added to a job's output."""
    try:
        with job.output.open("rb") as stream:
            stream.seek(job.position)
            added, end, _ = stream.read().rpartition(b"\n")
    except OSError:
        return []
    job.position += len(added) + len(end)
    return [event for line in added.splitlines() if (event := parse_event(line)) is not None]


def _states() -> dict[str, str] | None:
    """Return the user's jobs in the queue with their states; None while the scheduler does not answer."""
    found = _command("squeue", f"--user={getpass.getuser()}", "--noheader", "--array", "--format=%i %T")
    if found is None:
        return None
    return {job_id: state for job_id, _, state in (line.partition(" ") for line in found.splitlines())}


def _command(*arguments: str) -> str | None:
    """Run one of Slurm's commands; None if it failed."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _refusal(text: str) -> str:
    """Return the first error that sbatch gave: the later ones follow from it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else "sbatch failed")
