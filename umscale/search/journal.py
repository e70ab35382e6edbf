"""A search's journal that survives its writers: torn lines are cut, locks of dead processes broken at once.

Optuna's journal is a file of JSON lines that all workers append to under a lock, a symbolic link beside it. A worker
that is killed while it appends leaves a line without its end; the next one would be glued to it, and nobody could read
the journal any more. One that is killed while it holds the lock leaves the link. Here the link names its owner, so that
others on the same machine need not wait; other programs (optuna-dashboard) see the lock that they know.
"""

import contextlib
import json
import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import LOCK_FILE_SUFFIX, BaseJournalFileLock, get_lock_file

from umscale.errors import UserError
from umscale.processes import scope, start_time

GRACE_SECONDS = 30.0
"""How long a lock may stay the same before it is taken for one that a process on another machine has left."""
SAY_SECONDS = 2.0
LONGEST_PAUSE = 0.2

log = logging.getLogger(__name__)


class Lock(BaseJournalFileLock):
    """The lock beside a journal."""

    def __init__(self, journal: Path) -> None:
        self.path = Path(f"{journal}{LOCK_FILE_SUFFIX}")
        self._mine = ""

    def acquire(self) -> bool:
        """Wait for the lock and take it; what holds it up is said.

        Raises:
            UserError: the folder cannot be written.
        """
        mine = f"{scope()}-{os.getpid()}-{start_time(os.getpid())}-{secrets.token_hex(4)}"
        began, pause, said = time.monotonic(), 0.001, False
        seen, since = "", began
        while True:
            try:
                os.symlink(mine, self.path)
            except FileExistsError:
                pass
            except OSError as error:
                raise UserError(f"{self.path} cannot be made ({error.strerror})") from None
            else:
                self._mine = mine
                return True
            owner, now = self._owner(), time.monotonic()
            if owner != seen:
                seen, since = owner, now
            if owner and (_dead(owner) or now - since > GRACE_SECONDS):
                self._break(owner)
                continue
            if not said and now - began > SAY_SECONDS:
                said = True
                log.warning(
                    "waiting for another process to release %s; if none runs, it is taken in %.0f s",
                    self.path,
                    GRACE_SECONDS - (now - since),
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def release(self) -> None:
        """Give the lock back, unless it was taken from this process."""
        if self._mine and self._owner() == self._mine:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._mine = ""

    def _owner(self) -> str:
        """Return what tells this lock from another; empty when there is none."""
        try:
            return os.readlink(self.path)
        except FileNotFoundError:
            return ""
        except OSError:  # no link: made by another program
            with contextlib.suppress(OSError):
                return f"{self.path.lstat().st_mtime_ns}"
            return ""

    def _break(self, owner: str) -> None:
        """Remove the lock of ``owner``; one that another has made meanwhile is put back."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            if os.path.islink(aside) and os.readlink(aside) != owner:
                with contextlib.suppress(FileExistsError):
                    os.symlink(os.readlink(aside), self.path)
            aside.unlink()


def _dead(owner: str) -> bool:
    """Whether the process that made a lock was on this machine and is gone."""
    made_by, _, rest = owner.partition("-")
    pid, _, rest = rest.partition("-")
    started = rest.partition("-")[0]
    return made_by == scope() != "" and pid.isdecimal() and str(start_time(int(pid))) != started


class Journal(JournalFileBackend):
    """A journal whose torn end is cut before anything is added.

    Raises:
        UserError: the file is damaged beyond that; the message names the line.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; move it away, or give another --storage")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        super().__init__(str(path), lock)
        self.path = path
        if any(_entry(line) is None for line in _whole_lines(path.read_bytes())):
            with get_lock_file(lock):
                mend(path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries, whole or, if this process dies, in a way that the next one notices."""
        text = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs)
        with get_lock_file(self._lock), self.path.open("r+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            if stream.read(1) not in (b"", b"\n"):
                stream.seek(0)
                end = stream.read().rfind(b"\n") + 1
                stream.truncate(end)
            stream.seek(end)
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())


def _whole_lines(content: bytes) -> list[bytes]:
    """Return the lines that have an end."""
    return content.split(b"\n")[:-1]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "op_code" in found else None


def mend(path: Path) -> None:
    """Cut the torn end of a journal, and blank torn entries to which a later writer has glued its own.

    No byte that belongs to a whole entry moves: readers remember positions.

    Raises:
        UserError: a line holds no entry at all.
    """
    lines = _whole_lines(path.read_bytes())
    for number, line in enumerate(lines):
        if _entry(line) is not None:
            continue
        start = line.rfind(b'{"op_code"')
        while start > 0 and _entry(line[start:]) is None:
            start = line.rfind(b'{"op_code"', 0, start)
        if start > 0:
            lines[number] = b" " * start + line[start:]
        elif number == len(lines) - 1:
            lines.pop()
        else:
            raise UserError(
                f"{path}: line {number + 1} of {len(lines)} is damaged; remove it, or move the file away "
                "to search anew (finished runs of the store become trials again)"
            )
    with path.open("r+b") as stream:
        stream.write(b"".join(line + b"\n" for line in lines))
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())
