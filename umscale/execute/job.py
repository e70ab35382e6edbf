"""What workers share: a job, kept as a file in the store so that any process can join it by name."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from umscale.errors import UserError
from umscale.execute.claimed_run import Reporter
from umscale.files import SHORTEST
from umscale.store.store import Store
from umscale.trees import parse_object

NEWEST = "work/jobs/newest"
_NAME = re.compile("[0-9a-f]{16}")


class Job(Protocol):
    """Work that any number of workers do side by side, kept apart by claims in the store."""

    kind: ClassVar[str]

    def remaining(self, store: Store) -> int:
        """Units of work that are not over; no more workers than that are of use."""
        ...

    def work(self, store: Store, report: Reporter, device_name: str) -> None:
        """Do what nobody else does, until nothing is left or ``report.stopping``."""
        ...

    def give_up(self, store: Store, run_id: str, reason: str) -> None:
        """End a run whose workers keep dying."""
        ...

    def to_tree(self) -> dict[str, Any]:
        """The job as JSON; ``from_tree`` of its class reads it back."""
        ...


Kinds = Mapping[str, Callable[[Mapping[str, Any]], Job]]
"""Kind of a job → what reads it from its tree. A module of jobs names its own as ``JOBS``; who reads says which."""


def write_job(store: Store, job: Job) -> str:
    """Write a job into the store's work folder, as the newest there, and return its name."""
    text = json.dumps({"kind": job.kind, **job.to_tree()})
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    store.files.write(_path(name), text.encode())
    store.files.write(NEWEST, name.encode())
    return name


def newest_job(store: Store) -> str | None:
    """Return the name of the job that was last written; None if there is none."""
    try:
        return store.files.read(NEWEST, SHORTEST).decode(errors="replace").strip()
    except FileNotFoundError:
        return None


def read_job(store: Store, name: str, kinds: Kinds) -> Job:
    """Read what ``write_job`` wrote, as one of ``kinds``.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"job {name!r}: a job's name has 16 hexadecimal digits; work/jobs in the store lists them"
        )
    try:
        tree = parse_object(store.files.read(_path(name)))
        if tree["kind"] not in kinds:
            raise ValueError(f"a job of kind {tree['kind']!r}")
        return kinds[tree["kind"]](tree)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, UserError) as error:
        where = store.files.describe(_path(name))
        raise UserError(f"{where}: no readable job ({error}); run the same command again") from None


def _path(name: str) -> str:
    return f"work/jobs/{name}.json"
