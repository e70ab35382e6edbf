"""Workers as processes of this machine, each with its share of the GPUs if there are any."""

import os
import queue
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Protocol

from umscale.execute.executor import (
    STOP_SECONDS,
    Event,
    Executor,
    heard_within,
    parse_event,
    worker_command,
    worker_environment,
)
from umscale.execute.job import Job
from umscale.store.store import Store

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Process(Protocol):
    """What is needed of a ``subprocess.Popen``."""

    @property
    def stdout(self) -> IO[str] | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A worker process."""

    process: Process
    gpu: str | None


class LocalExecutor(Executor):
    """Does a job with ``workers`` processes of ``threads`` threads each.

    Args:
        gpus: GPUs to spread the workers over, as CUDA names them; without any, workers choose by ``device``.
    """

    elsewhere: ClassVar[bool] = False

    def __init__(
        self,
        store: Store,
        job: Job,
        workers: int,
        threads: int = 1,
        device: str = "auto",
        gpus: Sequence[str] = (),
    ) -> None:
        super().__init__(store, job, workers)
        self.threads, self.device, self.gpus = threads, device, tuple(gpus)
        self.heard: queue.Queue[tuple[int, Event]] = queue.Queue()
        self.workers: dict[int, Worker] = {}

    def start(self, numbers: Sequence[int]) -> None:
        """Start processes, each on the GPU with the fewest of them."""
        for number in numbers:
            on_gpu = [worker.gpu for worker in self.workers.values()]
            gpu = min(self.gpus, key=on_gpu.count) if self.gpus else None
            self.workers[number] = Worker(process=self._spawn(number, gpu), gpu=gpu)

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what workers reported."""
        found = heard_within(self.heard, seconds)
        for number, event in found:
            if event["event"] == "exit":
                del self.workers[number]
        return found

    def kill(self, number: int) -> None:
        """Kill a process."""
        self.workers[number].process.kill()

    def stop(self) -> None:
        """Terminate the processes, which checkpoint; kill those that do not."""
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

    def _spawn(self, number: int, gpu: str | None) -> Process:
        log = self.store.scratch / "logs" / f"worker-{os.getpid()}-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **worker_environment(self.store, self.threads)}
        if gpu is not None:
            environment[VISIBLE] = gpu
        command = worker_command(self.store, self.name, self.threads, self.device, type(self.job).__module__)
        with log.open("w", encoding="utf-8") as errors:
            process = self._launch(command, environment, errors)
        threading.Thread(target=self._listen, args=(number, process, log), daemon=True).start()
        return process

    def _launch(self, command: Sequence[str], environment: Mapping[str, str], errors: IO[str]) -> Process:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )

    def _listen(self, number: int, process: Process, log: Path) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = parse_event(line)
            if event is not None:
                self.heard.put((number, event))
        code = process.wait()
        if code == 0:
            log.unlink(missing_ok=True)
        self.heard.put((number, {"event": "exit", "code": code, "log": str(log)}))


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs that workers may be spread over, as CUDA names them; none for a ``device`` of ``cpu``."""
    if device == "cpu":
        return []
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] or [str(i) for i in range(count)]
