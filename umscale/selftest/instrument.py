"""What the crash test does inside the processes that it disturbs: log steps, make the wall clock jump, bound files."""

import os
import resource
import secrets
import time
from pathlib import Path

STEPS_VARIABLE = "UMSCALE_SELFTEST_STEPS"
"""Folder that workers log their steps in."""
CLOCK_VARIABLE = "UMSCALE_SELFTEST_CLOCK"
"""Seconds by which the wall clock of processes jumps to and fro."""
FILE_VARIABLE = "UMSCALE_SELFTEST_FILE_BYTES"
"""The longest file that they may write."""


def instrument(module: str) -> None:
    """Do as the environment says in this process, which is about to run ``module``."""
    if seconds := float(os.environ.get(CLOCK_VARIABLE, "0")):
        _jump(seconds)
    if n_bytes := int(os.environ.get(FILE_VARIABLE, "0")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    if (folder := os.environ.get(STEPS_VARIABLE)) and module == "umscale.execute.worker":
        _log_steps(Path(folder))


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
