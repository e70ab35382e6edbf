"""What all executors share: they start workers, hear them, replace those that are lost, and let the store judge.

An engine (``local``, ``slurm``, ``ray``) only says how a worker is started, heard, ended. Whether a job is done is
read from the store, never from what an engine says about a process.
"""

import json
import os
import queue
import site
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import umscale
from umscale.errors import UserError
from umscale.execute.claimed_run import ADDRESS_VARIABLE, STORAGE_VARIABLE
from umscale.execute.job import Job, write_job
from umscale.processes import SAFE_PATH_VARIABLE, python_command
from umscale.store.store import Store
from umscale.urls import redact

Event = dict[str, Any]
"""What happened, under ``event``: see ``Executor.run``."""

DEATHS_PER_RUN = 3
STOP_SECONDS = 60.0
POLL_SECONDS = 0.2
WATCH_SECONDS = 5.0
"""Between looks for workers that hang; and the first pause where all that is left is in others' hands."""
LONGEST_PAUSE_SECONDS = 60.0


@dataclass(kw_only=True, slots=True)
class Member:
    """A worker as its executor knows it."""

    run: str | None = None
    """The run it is on."""
    token: str = ""
    """Of its claim on that."""
    early: bool = False
    """It was asked to stop while there was work left."""


class Executor(ABC):
    """Does a job with up to ``workers`` worker processes.

    Use as a context manager: leaving it, for whatever reason, stops every worker, with a checkpoint.
    """

    elsewhere: ClassVar[bool] = True
    """Whether workers may be on other machines, so that messages must say where."""

    def __init__(self, store: Store, job: Job, workers: int) -> None:
        self.store, self.job, self.n_workers = store, job, workers
        self.crew: dict[int, Member] = {}
        self.deaths: dict[str, int] = {}
        self.fruitless = 0
        """Workers lost or sent away since the last result."""
        self.started = 0
        self.watched = time.monotonic()
        self.name = ""
        """Of the job in the store."""

    def join(self, name: str) -> Self:
        """Take part in a job that the store has already."""
        self.name = name
        return self

    def __enter__(self) -> Self:
        self.name = self.name or write_job(self.store, self.job)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self.crew.clear()

    # -- what an engine provides --------------------------------------------------------------------------

    @abstractmethod
    def start(self, numbers: Sequence[int]) -> None:
        """Start a worker for each number."""

    @abstractmethod
    def events(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what workers reported, waiting up to ``seconds``; the last of a worker is always ``exit``."""

    @abstractmethod
    def kill(self, number: int) -> None:
        """End a worker at once, without a checkpoint; its ``exit`` follows."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all workers to checkpoint and stop, wait for it, kill those that do not."""

    # -- what is common -----------------------------------------------------------------------------------

    def run(self, on_event: Callable[[int, Event], None]) -> None:
        """Work until nothing of the job remains; what others have in hand is waited for.

        ``on_event`` gets (worker number, event): ``ready``, ``start``, ``progress``, ``record``, ``end``, ``stopped``,
        ``requeued`` from workers, ``queue`` from a scheduler, and ``exit`` with the process's ``code`` (None for a
        worker that was lost with its machine or its slot) and the ``log`` that may say why.

        Raises:
            UserError: a worker met something only the user can put right, or the engine keeps losing workers.
        """
        pause = WATCH_SECONDS
        while remaining := self.job.remaining(self.store):
            self._recruit(min(self.n_workers, remaining))
            idle = True
            while self.crew:
                for number, event in self.events(POLL_SECONDS):
                    idle = idle and event["event"] != "start"
                    self._handle(number, event, on_event)
                self._kill_hanging()
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if idle else WATCH_SECONDS
            self._wait_for_others(pause)

    def _recruit(self, wanted: int) -> None:
        """Bring the number of workers up to ``wanted``."""
        numbers = range(self.started, self.started + max(0, wanted - len(self.crew)))
        self.started = numbers.stop
        if numbers:
            self.crew |= {number: Member() for number in numbers}
            self.start(numbers)

    def _wait_for_others(self, seconds: float) -> None:
        """Wait until some of what remains is free to be taken or nothing remains, but no longer than ``seconds``.

        Starting workers costs seconds here and a place in the queue elsewhere, so it should not be in vain.
        """
        deadline = time.monotonic() + seconds
        while remaining := self.job.remaining(self.store):
            if remaining > len(self.store.claimed()) or time.monotonic() >= deadline:
                return
            time.sleep(WATCH_SECONDS / 5)

    def _kill_hanging(self) -> None:
        """End workers whose run shows no progress for long; others then take it over."""
        if time.monotonic() - self.watched < WATCH_SECONDS:
            return
        self.watched = time.monotonic()
        by_run = {member.run: number for number, member in self.crew.items() if member.run is not None}
        for run_id in self.store.stale({run_id: self.crew[n].token for run_id, n in by_run.items()}):
            self.kill(by_run[run_id])

    def _handle(self, number: int, event: Event, on_event: Callable[[int, Event], None]) -> None:
        member = self.crew[number]
        match event["event"]:
            case "user_error":
                where = f"on {event['host']}: " if self.elsewhere else ""
                raise UserError(where + event["message"])
            case "start":
                member.run, member.token = event["run"], event["token"]
            case "record":
                self.fruitless = 0
            case "end":
                member.run = None
                self.fruitless = 0
            case "requeued":
                member.run = None
            case "stopped":
                member.early = event["early"]
            case "exit":
                del self.crew[number]
                on_event(number, event)
                self._gone(member, event)
                return
        on_event(number, event)

    def _gone(self, member: Member, event: Event) -> None:
        """Replace a worker that ended with work left; give up on a run that keeps killing its workers."""
        code = event["code"]
        if code == 0 and not member.early:
            return
        if code is None or code == 0:
            self.fruitless += 1
            if self.fruitless >= max(10, 3 * self.n_workers):
                raise UserError(
                    f"{self.fruitless} workers in a row were lost or sent away before any gave a result; see "
                    f"{event['log']}"
                )
        elif member.run is None:
            self.deaths[""] = self.deaths.get("", 0) + 1
            if self.deaths[""] >= DEATHS_PER_RUN:
                raise RuntimeError(f"workers die before their first run ({_cause(code)}); see {event['log']}")
        else:
            deaths = self.deaths[member.run] = self.deaths.get(member.run, 0) + 1
            if deaths >= DEATHS_PER_RUN:
                reason = f"its worker died {deaths} times, last by {_cause(code)} (out of memory?)"
                self.job.give_up(self.store, member.run, reason)
        self._recruit(min(self.n_workers, len(self.crew) + 1, self.job.remaining(self.store)))


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def parse_event(line: str | bytes) -> Event | None:
    """Return the event that a line of a worker's output holds; None if it is something else."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def heard_within(heard: "queue.Queue[tuple[int, Event]]", seconds: float) -> list[tuple[int, Event]]:
    """Return what workers have put into a queue, by number; wait for at most so long while there is nothing."""
    try:
        found = [heard.get(timeout=seconds)]
        while not heard.empty():
            found.append(heard.get_nowait())
    except queue.Empty:
        return []
    return found


def worker_command(store: Store, job: str, threads: int, device: str, jobs: str) -> list[str]:
    """Return the command line of a worker, which reads its job by the module ``jobs``.

    A password in the store's URL is left to ``worker_environment``.
    """
    where = str(store.root.absolute()) if store.is_folder else redact(store.address)
    return python_command("umscale.execute.worker", where, job, str(threads), device, jobs)


def worker_environment(store: Store, threads: int) -> dict[str, str]:
    """Return what a worker needs in its environment."""
    needed = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": python_path(), SAFE_PATH_VARIABLE: "1"}
    if redact(store.address) != store.address:
        needed[ADDRESS_VARIABLE] = store.address
    if STORAGE_VARIABLE in os.environ:
        needed[STORAGE_VARIABLE] = os.environ[STORAGE_VARIABLE]
    return needed


def python_path() -> str:
    """Return a PYTHONPATH with which a worker imports what this process imported, installed or not.

    Folders that Python searches anyway are left out, since in front of the standard library they could hide parts of
    it; so are empty entries, which would stand for the worker's current folder.
    """
    import umscale_kernels
    import umscale_studies

    packages = (umscale, umscale_kernels, umscale_studies)
    roots = [Path(package.__path__[0]).resolve().parent for package in packages]
    installed = {Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())}
    paths = [str(root) for root in dict.fromkeys(roots) if root not in installed]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*paths, *(str(Path(path).absolute()) for path in given if path)]))
