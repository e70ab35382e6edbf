"""Processes: how this program's own are started, and which are alive as others on this machine can check them."""

import functools
import hashlib
import os
import sys
from pathlib import Path

SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"
"""Set for every process started here: what those start in turn does not look into the current folder either."""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module's ``__main__``.

    ``-P`` keeps the current folder off the search path: a user's ``random.py`` is not Python's, and a checkout of
    umscale that happens to be the current folder is not the one that was called.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


@functools.cache
def scope() -> str:
    """Return 16 hex digits for this boot of this machine and this process namespace, the scope of a pid.

    Empty where they cannot be told; pids can then not be judged.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        text = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is none, or only its remains.

    Together with the pid this tells a process from a later one that was given the same pid.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
