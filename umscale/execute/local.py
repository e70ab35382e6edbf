"""Workers of a job on this machine: starts them, hears them, replaces those that die, stops them cleanly."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import umscale
from umscale.errors import UserError
from umscale.execute.job import Job, write_job
from umscale.store import Store

Event = dict[str, Any]

DEATHS_PER_RUN = 3
STOP_SECONDS = 60.0
POLL_SECONDS = 0.2
ELSEWHERE_SECONDS = 2.0


@dataclass(kw_only=True, slots=True)
class Worker:
    """A running worker process."""

    process: subprocess.Popen[str]
    reader: threading.Thread
    run: str | None = None
    """The run it is on."""


class LocalExecutor:
    """Does a job with ``workers`` processes of ``threads`` threads each.

    Use as a context manager: leaving it, for whatever reason, stops every worker, with a checkpoint.
    """

    def __init__(self, store: Store, job: Job, workers: int, threads: int = 1, device: str = "auto") -> None:
        self.store, self.job = store, job
        self.n_workers, self.threads, self.device = workers, threads, device
        self.events: queue.Queue[tuple[int, Event]] = queue.Queue()
        self.workers: dict[int, Worker] = {}
        self.deaths: dict[str, int] = {}
        self.started = 0

    def __enter__(self) -> "LocalExecutor":
        self.name = write_job(self.store, self.job)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def run(self, on_event: Callable[[int, Event], None]) -> None:
        """Work until nothing of the job remains; what others have in hand is waited for.

        Raises:
            UserError: a worker met something only the user can put right.
        """
        while remaining := self.job.remaining(self.store):
            for _ in range(min(self.n_workers, remaining) - len(self.workers)):
                self._start()
            while self.workers:
                try:
                    number, event = self.events.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                self._handle(number, event, on_event)
            if self.job.remaining(self.store):
                time.sleep(ELSEWHERE_SECONDS)  # held by workers elsewhere, or freed just now

    def stop(self) -> None:
        """Ask the workers to checkpoint and stop; kill those that do not."""
        for worker in self.workers.values():
            worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers.values():
            try:
                worker.process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self.workers.clear()

    def _start(self) -> None:
        number = self.started
        self.started += 1
        command = [sys.executable, "-m", "umscale.execute.worker"]
        arguments = [str(self.store.root), self.name, str(self.threads), self.device]
        log = self.store.root / "work" / "logs" / f"worker-{os.getpid()}-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ, OMP_NUM_THREADS=str(self.threads), PYTHONPATH=_python_path())
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                command + arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone
            )
        reader = threading.Thread(target=self._listen, args=(number, process, log), daemon=True)
        self.workers[number] = Worker(process=process, reader=reader)
        reader.start()

    def _listen(self, number: int, process: "subprocess.Popen[str]", log: Path) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                self.events.put((number, json.loads(line)))
            except ValueError:
                continue
        code = process.wait()
        if code == 0:
            log.unlink(missing_ok=True)
        self.events.put((number, {"event": "exit", "code": code, "log": str(log)}))

    def _handle(self, number: int, event: Event, on_event: Callable[[int, Event], None]) -> None:
        worker = self.workers[number]
        kind = event["event"]
        if kind == "user_error":
            raise UserError(event["message"])
        if kind == "start":
            worker.run = event["run"]
        elif kind == "end":
            worker.run = None
        elif kind == "exit":
            del self.workers[number]
            if event["code"] != 0:
                self._died(worker, event)
        on_event(number, event)

    def _died(self, worker: Worker, event: Event) -> None:
        """Replace a worker that was killed; give up on a run that keeps killing its workers."""
        code, run_id = event["code"], worker.run
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        if run_id is None:
            self.deaths[""] = self.deaths.get("", 0) + 1
            if self.deaths[""] >= DEATHS_PER_RUN:
                raise RuntimeError(f"workers die before their first run ({cause}); see {event['log']}")
        else:
            self.deaths[run_id] = self.deaths.get(run_id, 0) + 1
            if self.deaths[run_id] >= DEATHS_PER_RUN:
                reason = f"its worker died {self.deaths[run_id]} times, last by {cause} (out of memory?)"
                self.job.give_up(self.store, run_id, reason)
        if self.job.remaining(self.store):
            self._start()


def _python_path() -> str:
    """Return a PYTHONPATH with which a worker imports what this process imported, installed or not."""
    import umscale_kernels
    import umscale_studies

    packages = (umscale, umscale_kernels, umscale_studies)
    roots = [Path(package.__path__[0]).resolve().parent for package in packages]
    paths = [str(root) for root in dict.fromkeys(roots)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return os.pathsep.join(paths)
