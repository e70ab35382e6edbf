"""Who works on what, on any filesystem and across machines: leases kept as small files, without locks or renames.

To claim a name a worker writes ``<name>.<token>.claim`` and then lists the folder. It owns the name if and only if no
other live claim on it is there; else it removes its own and perhaps tries again after a random pause. Where a listing
shows every file written before it (POSIX, NFS on the client that wrote, S3, GCS), two workers cannot both own a name:
the later to write lists after the earlier one wrote.

A claim says which process made it, and is never rewritten. Its owner shows that it makes progress by counting up in
``<name>.<token>.beat``. A claim is dead

- at once, if its process was on this machine (same boot, same process namespace) and is gone;
- when its beat has not changed for ``stale_seconds`` on the *observer's* monotonic clock. No two clocks are compared,
  so clocks that jump or disagree do not matter; a worker that hangs stops beating and loses its work, alive or not.

Whoever finds a dead claim removes it. An owner that wakes from a long sleep finds its claim gone, and stops before it
writes anything further. Should it wake between that look and the write, no harm is done: results are functions of
the run's specification, and files are replaced whole.
"""

import contextlib
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from umscale.errors import UserError
from umscale.files import SHORTEST, Files, Unusable
from umscale.processes import scope, start_time
from umscale.trees import parse_object

STALE_SECONDS = 300.0
"""Default; longer than the longest time without a training step or a batch of evaluation (a kernel's compilation)."""
ATTEMPTS = 4
PAUSE_SECONDS = 0.05
BEATS = 10
"""Beats written within ``stale_seconds``, at most one in ``SLOWEST_BEAT`` seconds."""
SLOWEST_BEAT = 15.0


class ClaimLost(Exception):
    """Another worker has taken over; nothing further may be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim found in the folder."""

    name: str
    token: str
    host: str
    machine: str
    """Boot and process namespace, the scope of ``pid``; empty where they cannot be told."""
    pid: int
    started: int
    """Start time of the process in clock ticks since boot: a later process may bear the same pid."""


class Lease:
    """The right to work on a name; true, in contrast to the None of those who did not get it."""

    def __init__(self, claims: "Claims", name: str, token: str) -> None:
        self.name, self.token = name, token
        self._claims = claims
        self._count = 0
        self._beaten = time.monotonic()
        self._lost = False

    def beat(self) -> None:
        """Show that there is progress; cheap, to be called at every step.

        Raises:
            ClaimLost: another worker has taken over.
        """
        now = time.monotonic()
        if now - self._beaten < min(self._claims.stale_seconds / BEATS, SLOWEST_BEAT):
            return
        self._beaten = now
        self.check()
        self._count += 1
        # A beat that cannot be written now may be later; what must be written says so itself.
        with contextlib.suppress(OSError, UserError):
            self._claims.write_beat(self, self._count)

    def check(self) -> None:
        """Raise ``ClaimLost`` unless the claim is still there."""
        if not self._lost:
            self._lost = not self._claims.holds(self)
        if self._lost:
            raise ClaimLost(f"another worker has taken over {self.name}")


class Claims:
    """The claims in one folder, as one process sees them; what it has seen of others' beats is kept here."""

    def __init__(self, files: Files, folder: str, stale_seconds: float = STALE_SECONDS) -> None:
        self.files, self.folder, self.stale_seconds = files, folder, stale_seconds
        self._seen: dict[str, tuple[str, float]] = {}
        self._random = random.Random(secrets.randbits(64))

    def claim(self, name: str) -> Lease | None:
        """Try to become the owner of ``name``; None if it has a live one."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS * 2**attempt * self._random.random())
            if self._others(name, ""):
                return None
            token = secrets.token_hex(8)
            mine = False
            try:
                self._write(name, token)
                mine = not self._others(name, token)
            finally:  # two came at once and both withdraw, or the folder could not be listed
                if not mine:
                    self._remove(name, token)
            if mine:
                return Lease(self, name, token)
        return None

    def release(self, lease: Lease) -> None:
        """Give up a name."""
        self._remove(lease.name, lease.token)

    def live(self) -> dict[str, Claim]:
        """Return the live claims by name, in one listing, and remove the dead ones.

        A process that has just come has not watched a silent claim for long enough; this one may have, and so frees
        the name for it.
        """
        found = {}
        for claim in self._claims():
            if self._alive(claim):
                found[claim.name] = claim
            else:
                with contextlib.suppress(UserError):  # a store that one may only read
                    self._remove(claim.name, claim.token)
        return found

    def stale(self, tokens: Mapping[str, str]) -> set[str]:
        """Return the names whose owners, by the tokens of their claims, show no progress any more.

        Also those that have lost their claims to others and do not notice it. It takes calls over at least
        ``stale_seconds`` to find out: what one call sees is compared with what earlier ones saw.
        """
        return {name for name, token in tokens.items() if self._unchanged(name, token)}

    def holds(self, lease: Lease) -> bool:
        """Return whether a lease's claim is still there; storage that does not answer is no reason to give up."""
        try:
            return self.files.exists(self._path(lease.name, lease.token, "claim"))
        except (OSError, UserError):
            return True

    def write_beat(self, lease: Lease, count: int) -> None:
        """Show a new count."""
        self.files.write(self._path(lease.name, lease.token, "beat"), str(count).encode(), durable=False)

    def _write(self, name: str, token: str) -> None:
        content = {"host": socket.gethostname(), "machine": scope(), "pid": os.getpid()}
        content["started"] = start_time(os.getpid()) or 0
        self.files.write(self._path(name, token, "claim"), json.dumps(content).encode(), durable=False)

    def _others(self, name: str, mine: str) -> bool:
        """Return whether someone else's claim on ``name`` is alive; remove the dead ones."""
        found = False
        for claim in self._claims({name}):
            if claim.token == mine:
                continue
            if self._alive(claim):
                found = True
            else:
                self._remove(name, claim.token)
        return found

    def _alive(self, claim: Claim) -> bool:
        if claim.machine and claim.machine == scope() and start_time(claim.pid) != claim.started:
            return False
        return not self._unchanged(claim.name, claim.token)

    def _unchanged(self, name: str, token: str) -> bool:
        """Note a claim's beat, and return whether it has been the same for too long."""
        try:
            beat = self._read(self._path(name, token, "beat")).decode(errors="replace")
        except FileNotFoundError:
            beat = ""
        now = time.monotonic()
        before, since = self._seen.get(token, (None, now))
        self._seen[token] = (beat, since if beat == before else now)
        return beat == before and now - since >= self.stale_seconds

    def _claims(self, names: Collection[str] | None = None) -> list[Claim]:
        """Return the claims that the folder holds, on ``names`` alone when given."""
        found, tokens = [], set()
        for entry in self.files.entries(self.folder):
            name, _, rest = entry.name.partition(".")
            token, _, kind = rest.partition(".")
            tokens.add(token)
            if kind != "claim" or (names is not None and name not in names):
                continue
            with contextlib.suppress(FileNotFoundError):  # released meanwhile
                found.append(_parse(name, token, self._read(f"{self.folder}/{entry.name}")))
        self._seen = {token: seen for token, seen in self._seen.items() if token in tokens}
        return found

    def _read(self, name: str) -> bytes:
        """Return a file's content, nothing of what is no file; raises ``FileNotFoundError``."""
        try:
            return self.files.read(name, SHORTEST)
        except Unusable:
            return b""

    def _remove(self, name: str, token: str) -> None:
        for kind in ("claim", "beat"):
            path = self._path(name, token, kind)
            try:
                self.files.delete(path)
            except (OSError, UserError):
                # Once more: a claim left behind keeps others off a run until it is taken for dead.
                self.files.delete(path)

    def _path(self, name: str, token: str, kind: str) -> str:
        return f"{self.folder}/{name}.{token}.{kind}"


def _parse(name: str, token: str, content: bytes) -> Claim:
    """Read a claim; one that cannot be read is judged by its beat alone."""
    try:
        tree = parse_object(content)
        return Claim(
            name=name,
            token=token,
            host=str(tree["host"]),
            machine=str(tree["machine"]),
            pid=int(tree["pid"]),
            started=int(tree["started"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return Claim(name=name, token=token, host="", machine="", pid=0, started=0)
