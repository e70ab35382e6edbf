"""Workers as tasks of a Ray cluster: one that runs already, or one of this machine's own.

Notable:
- A task streams its worker's reports back; results travel through the store alone. A task lost with its node is
  replaced by one on a node that is left, which continues from the checkpoint.
- Ray hands out CPUs and GPUs, and sets CUDA_VISIBLE_DEVICES for each task.
- A cluster started here listens on 127.0.0.1 alone, and asks for a token. Ray takes 127.0.0.1 for the machine's
  public address unless it believes itself to be on a system without clusters, hence ``LOOPBACK_VARIABLE``.
"""

import importlib.util
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from umscale.errors import UserError
from umscale.execute.executor import (
    STOP_SECONDS,
    Event,
    Executor,
    parse_event,
    python_path,
    worker_command,
    worker_environment,
)
from umscale.execute.job import Job
from umscale.processes import SAFE_PATH_VARIABLE
from umscale.store.store import Store

CONNECT_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost")
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
OBJECTS_BYTES = 80 * 2**20
"""Of shared memory for a cluster started here: only reports go through it."""


class RayExecutor(Executor):
    """Does a job with ``workers`` Ray tasks, each one worker process of ``threads`` threads.

    Args:
        address: a running cluster, such as ``10.0.0.1:6379`` or ``auto``; None starts one on this machine.
        per_gpu: workers that share a GPU, where the cluster has any and ``device`` is not ``cpu``.

    Raises:
        UserError: ray is missing, or no cluster answers.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        workers: int,
        threads: int = 1,
        device: str = "auto",
        address: str | None = None,
        per_gpu: int = 1,
    ) -> None:
        check_ray(address)
        super().__init__(store, job, workers)
        self.threads, self.device = threads, device
        self.ray = _connect(address, workers * threads)
        has_gpus = device != "cpu" and self.ray.cluster_resources().get("GPU", 0) > 0
        self.gpus = 1 / per_gpu if has_gpus else 0
        self.tasks: dict[int, Any] = {}

    def start(self, numbers: Sequence[int]) -> None:
        """Submit a task for each number; those that find no room wait in Ray's queue."""
        remote = self.ray.remote(run_worker).options(
            num_cpus=self.threads, num_gpus=self.gpus, max_retries=0, num_returns="streaming"
        )
        _, *arguments = worker_command(
            self.store, self.name, self.threads, self.device, type(self.job).__module__
        )
        environment = worker_environment(self.store, self.threads)
        self.tasks |= {number: remote.remote(arguments, environment) for number in numbers}

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what workers reported."""
        found: list[tuple[int, Event]] = []
        numbers = {task: number for number, task in self.tasks.items()}
        for task in self._ready(seconds):
            event = self._next(task)
            if event["event"] == "exit":
                del self.tasks[numbers[task]]
            found.append((numbers[task], event))
        return found

    def kill(self, number: int) -> None:
        """Kill a task's process on its node; its worker stops when it finds nobody listening."""
        self.ray.cancel(self.tasks[number], force=True)

    def stop(self) -> None:
        """Cancel the tasks, whose workers checkpoint; then leave the cluster, or end it if it was started here."""
        try:
            for task in self.tasks.values():
                self.ray.cancel(task)
            deadline = time.monotonic() + STOP_SECONDS
            while self.tasks and time.monotonic() < deadline:
                self.events(1.0)
        finally:
            self.tasks.clear()
            self.ray.shutdown()

    def _ready(self, seconds: float) -> list[Any]:
        """Return the tasks that have something to say."""
        tasks = list(self.tasks.values())
        ready, _ = self.ray.wait(tasks, timeout=seconds)
        return list(self.ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]) if ready else []

    def _next(self, task: Any) -> Event:
        """Return a task's next event; the end of a task that was lost has no code."""
        lost: Event = {"event": "exit", "code": None, "log": "Ray's logs"}
        try:
            event = self.ray.get(next(task))
        except StopIteration:
            return lost
        except self.ray.exceptions.RayError as error:
            return lost | {"log": f"Ray's logs ({_first_line(error)})"}
        assert isinstance(event, dict)
        return event


def run_worker(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Event]:
    """Run a worker with this node's Python and yield its reports; the task that Ray runs."""
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if (event := parse_event(line)) is not None:
                    yield event
            code = process.wait()
        finally:  # also when the task is cancelled
            process.terminate()
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
        yield {"event": "exit", "code": code, "log": f"its last words: {said[-1]}" if said else "Ray's logs"}


def check_ray(address: str | None) -> None:
    """Raise UserError unless ray is installed and something listens at the address; Ray would try for minutes."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--executor ray needs ray: pip install 'umscale[ray]'")
    if address is None or address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise UserError(f"--address {address!r}: give HOST:PORT of the cluster's head, or auto")
    try:
        _knock(host, int(port))
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no cluster there ({error})") from None


def _knock(host: str, port: int) -> None:
    """Raise OSError unless something listens there."""
    socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()


def _on_loopback_alone(address: str) -> bool:
    """Whether a cluster listens on this machine's loopback and not on its public address."""
    host, _, port = address.rpartition(":")
    if host not in LOOPBACK:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; the system names the address it would send from
            _knock(probe.getsockname()[0], int(port))
        except OSError:
            return True
    return False


def _connect(address: str | None, cpus: int) -> ModuleType:
    """Join a cluster, or start one; return the ray module."""
    own = address is None
    if address is None or _on_loopback_alone(address):
        os.environ.setdefault(LOOPBACK_VARIABLE, "0")  # before ray is imported
    if own:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"address": address}
    if own:
        options = {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECTS_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        ray.init(
            **options,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": python_path(), SAFE_PATH_VARIABLE: "1"}},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "no cluster could be started here" if own else f"no cluster at {address}"
        raise UserError(f"--executor ray: {where} ({_first_line(error)})") from None
    finally:
        _restore(handlers)
    return ray


def _restore(handlers: Mapping[Any, Any]) -> None:
    """Put signal handlers back: Ray's would end this process before its workers have written their checkpoints."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
