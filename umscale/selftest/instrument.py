"""What the crash test does inside the processes that it disturbs.

It logs steps, makes the wall clock jump, bounds the length of files, and lets a worker be killed as it writes one.
"""

import contextlib
import os
import resource
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS_VARIABLE = "UMSCALE_SELFTEST_STEPS"
"""Folder that workers log their steps in."""
CLOCK_VARIABLE = "UMSCALE_SELFTEST_CLOCK"
"""Seconds by which the wall clock of processes jumps to and fro."""
FILE_VARIABLE = "UMSCALE_SELFTEST_FILE_BYTES"
"""The longest file that they may write."""
AMBUSH_VARIABLE = "UMSCALE_SELFTEST_AMBUSH"
"""Folder with the ambush that the next worker that replaces a file walks into."""
WAITING, STRUCK = "waiting", "struck"
"""Files there: after how many flushes and renames to strike, and how it went."""


def instrument(module: str) -> None:
    """Do as the environment says in this process, which is about to run ``module``."""
    if seconds := float(os.environ.get(CLOCK_VARIABLE, "0")):
        _jump(seconds)
    if n_bytes := int(os.environ.get(FILE_VARIABLE, "0")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    if (folder := os.environ.get(STEPS_VARIABLE)) and module == "umscale.execute.worker":
        _log_steps(Path(folder))
    if (folder := os.environ.get(AMBUSH_VARIABLE)) and module == "umscale.execute.worker":
        _Ambush(Path(folder)).lay()


def _jump(seconds: float) -> None:
    """Shift the wall clock by ``seconds``, forwards and backwards in turn, changing every half second."""
    true = time.time

    def jumping() -> float:
        return true() + (seconds if int(2 * time.monotonic()) % 2 else -seconds)

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)
    for name in ("gmtime", "localtime"):
        _default_to(name, jumping)


def _default_to(name: str, now: "object") -> None:
    plain = getattr(time, name)
    setattr(time, name, lambda seconds=None: plain(now() if seconds is None else seconds))  # type: ignore[operator]


def _log_steps(folder: Path) -> None:
    """Append a line per step: run, phase, step, CPU seconds of this process, seconds on the machine's clock."""
    from umscale.training.run import Run

    name = f"{os.getpid()}-{secrets.token_hex(4)}.log"
    target = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    plain = Run.launch_step

    def launch_step(self: Run) -> None:
        plain(self)
        now = f"{time.process_time():.6f} {time.monotonic():.6f}"
        os.write(target, f"{self.spec.run_id} {self._phase} {self.step} {now}\n".encode())

    Run.launch_step = launch_step  # type: ignore[method-assign]


class _Ambush:
    """Kills this process just before or just after one of its flushes and renames, if the test has laid an ambush.

    A file is replaced in milliseconds; kills from outside hardly ever find one between its flush and its rename.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left: int | None = None
        """Moments until the kill; None while nothing waits for this process."""

    def lay(self) -> None:
        for name in ("fsync", "replace"):
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._pass(f"before {name}")
            result = plain(*arguments, **options)
            self._pass(f"after {name}")
            return result

        return call

    def _pass(self, moment: str) -> None:
        if self.left is None:
            taken = self.folder / f"{os.getpid()}"
            with contextlib.suppress(FileNotFoundError, ValueError):
                os.rename(self.folder / WAITING, taken)  # one worker gets it
                self.left = int(taken.read_text(encoding="utf-8"))
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            (self.folder / STRUCK).write_text(moment, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
