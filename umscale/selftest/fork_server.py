"""A process that has imported everything forks those that the crash test disturbs: in milliseconds, not seconds.

Importing PyTorch takes seconds. Started anew after every kill, sweeps and workers would spend nine tenths of a test
there, where there is nothing to lose. What they do once started is what they always do.

    python -m umscale.selftest.fork_server SOCKET      until its stdin is closed

A client sends JSON with the file descriptors for stdout and stderr, and keeps the connection: ``{"module": …,
"arguments": […], "environment": {…}}`` is answered with a pid and, when the process has ended, with its exit code;
``{"alive": MODULE}`` with the pids of the processes that run it.
"""

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from umscale.execute.executor import python_path
from umscale.processes import python_command
from umscale.selftest.instrument import instrument

START_SECONDS = 300.0
LONGEST_MESSAGE = 1 << 17
MODULES = ("umscale.execute.worker", "umscale.selftest.disturbed_sweep")
_BEFOREHAND = (
    *MODULES, "torch._dynamo", "numpy.ma", "pandas", "pyarrow.compute", "pyarrow.parquet", "umscale.execute.local",
    "umscale.execute.workload", "umscale.training.run",
)  # fmt: skip
"""No threads are started by importing these, so forking is safe. PyArrow would import pandas at the first table
that a process makes, which is half of what starting a sweep costs."""


# ---------------------------------------------------------------------------------------------------------
# The server


def main(arguments: list[str]) -> int:
    """Serve until stdin is closed; returns the exit code."""
    for module in _BEFOREHAND:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(arguments[0])
    listener.listen(64)
    modules: dict[int, str] = {}
    """What each living child runs."""
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return 0
                if key.fileobj is listener:
                    # A client may be stopped before it asks: it is waited for here, with all the others.
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif key.data is None:
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    _serve(key.fileobj, selector, modules)
                else:
                    pid, connection = key.data
                    _, status = os.waitpid(pid, 0)
                    del modules[pid]
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    _answer(connection, os.waitstatus_to_exitcode(status))
                    connection.close()


def _serve(connection: socket.socket, selector: selectors.BaseSelector, modules: dict[int, str]) -> None:
    """Answer a client."""
    content, targets, _, _ = socket.recv_fds(connection, LONGEST_MESSAGE, 2)
    request = json.loads(content or "{}")  # empty from a client that was killed before it asked
    if "module" in request:
        pid = os.fork()
        if pid == 0:
            _become(request, targets)
        modules[pid] = request["module"]
        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
        _answer(connection, pid)
    else:
        _answer(connection, [pid for pid, module in modules.items() if module == request.get("alive")])
        connection.close()
    for target in targets:
        os.close(target)


def _answer(connection: socket.socket, answer: object) -> None:
    with contextlib.suppress(OSError):  # the client was killed meanwhile
        connection.sendall(json.dumps(answer).encode())


def _become(request: Mapping[str, Any], targets: Sequence[int]) -> None:
    """Go on as the process that was asked for; never returns."""
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in zip((nothing, *targets), range(3), strict=True):
            os.dup2(source, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(request["environment"])
        instrument(request["module"])
        code = sys.modules[request["module"]].main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


# ---------------------------------------------------------------------------------------------------------
# Its clients


class Child:
    """A process that the server forked, used as a ``subprocess.Popen``."""

    def __init__(self, connection: socket.socket, stdout: IO[str] | None) -> None:
        self.stdout = stdout
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()
        self.pid = int(_receive(connection))

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return its exit code; raises ``subprocess.TimeoutExpired``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        try:
            if self.returncode is None:
                left = None if deadline is None else max(1e-3, deadline - time.monotonic())
                self._connection.settimeout(left)
                self.returncode = int(_receive(self._connection))
                self._connection.close()
            return self.returncode
        except TimeoutError:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
        finally:
            self._lock.release()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process is known to have ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask the process to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process."""
        self.send_signal(signal.SIGKILL)


def start_fork_server(address: Path) -> "subprocess.Popen[bytes]":
    """Start a fork server and wait until it serves; closing its stdin ends it."""
    command = python_command("umscale.selftest.fork_server", str(address))
    environment = dict(os.environ) | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _connect(address).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError("the process that forks sweeps and workers did not start") from None
            time.sleep(0.05)
        else:
            return server


def spawn(
    address: Path,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    errors: IO[Any],
    hear: bool,
) -> Child:
    """Have the fork server run a module's ``main``.

    Args:
        errors: file for its stderr.
        hear: whether its stdout is to be read.
    """
    request = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
    connection = _connect(address)
    if not hear:
        with Path(os.devnull).open("wb") as nothing:
            _ask(connection, request, [nothing.fileno(), errors.fileno()])
        return Child(connection, None)
    reading, writing = os.pipe()
    _ask(connection, request, [writing, errors.fileno()])
    os.close(writing)
    return Child(connection, os.fdopen(reading, encoding="utf-8"))


def alive(address: Path, module: str) -> list[int]:
    """Return the processes that run a module."""
    with _connect(address) as connection:
        _ask(connection, {"alive": module})
        found: list[int] = _receive(connection)
        return found


def _connect(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(address))
    return connection


def _ask(connection: socket.socket, request: Mapping[str, Any], targets: Sequence[int] = ()) -> None:
    socket.send_fds(connection, [json.dumps(request).encode()], targets)


def _receive(connection: socket.socket) -> Any:
    return json.loads(connection.recv(LONGEST_MESSAGE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
