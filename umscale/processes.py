"""Which process is alive: pids as other processes on this machine can check them."""

import functools
import hashlib
import os
from pathlib import Path


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
