"""Trackers behind one interface: each says what it has of a run, and takes what it lacks.

Nothing is written twice: TensorBoard's own files are read back, and what went to Weights & Biases is noted in a file
beside its runs, after it went.
"""

import importlib.util
import json
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from umscale.errors import UserError, nearest
from umscale.files import atomic_path
from umscale.results.events import event_files, read_scalars
from umscale.store.store import Store
from umscale.track.points import Point, TrackedRun, tracked_runs
from umscale.trees import parse_json

KINDS = ("tensorboard", "wandb")
SENT = "umscale-sent.json"
"""What went to Weights & Biases: run → tag → last step."""
INIT_SECONDS = 30
"""For which a server of Weights & Biases is waited for."""


class Tracker(Protocol):
    """Takes points of runs."""

    def seen(self, run: TrackedRun) -> Mapping[str, int]:
        """Return the last step of each tag that is there."""

    def write(self, run: TrackedRun, points: list[Point]) -> None:
        """Add points of a run, in rising order of steps."""


def open_tracker(kind: str, folder: Path, project: str) -> Tracker:
    """Return a tracker that writes below ``folder``; raises ``UserError`` for one that is unknown or not installed."""
    if kind not in KINDS:
        raise UserError(f"no tracker {kind!r}; there are {' and '.join(KINDS)}{nearest(kind, KINDS)}")
    try:
        return TensorBoard(folder) if kind == "tensorboard" else WandB(folder, project)
    except ImportError:
        raise UserError(f"{kind} is not installed: pip install 'umscale[trackers]'") from None


def mirror(store: Store, tracker: Tracker) -> int:
    """Bring a tracker up to a store; returns how many points were added."""
    added = 0
    for run in tracked_runs(store):
        seen = tracker.seen(run)
        fresh = [point for point in run.points if point[1] > seen.get(point[0], -1)]
        if fresh:
            tracker.write(run, fresh)
            added += len(fresh)
    return added


class TensorBoard:
    """A folder a run, named by its label and id, with event files that any TensorBoard reads."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError("tensorboard")
        self.folder = folder

    def _of(self, run: TrackedRun) -> Path:
        plain = "".join(c if c.isalnum() or c in "=.-_," else "_" for c in run.label)[:100]
        return self.folder / f"{plain}-{run.run_id[:8]}"

    def seen(self, run: TrackedRun) -> Mapping[str, int]:
        """See ``Tracker``."""
        found: dict[str, int] = {}
        for path in event_files(self._of(run)):
            for tag, points in read_scalars(path).items():
                found[tag] = max(found.get(tag, -1), *(step for step, _ in points))
        return found

    def write(self, run: TrackedRun, points: list[Point]) -> None:
        """See ``Tracker``."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(self._of(run)))
        try:
            for tag, step, value in points:
                writer.add_event(
                    Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
                )
        finally:
            writer.close()


class WandB:
    """A run of Weights & Biases for each of ours, by its id; offline where it is not logged in.

    ``WANDB_MODE`` and the other variables of Weights & Biases are heeded; nothing secret passes through here.
    """

    def __init__(self, folder: Path, project: str) -> None:
        import wandb

        self.wandb, self.folder, self.project = wandb, folder, project
        folder.mkdir(parents=True, exist_ok=True)
        self.mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        self.sent = _sent(folder / SENT)

    def seen(self, run: TrackedRun) -> Mapping[str, int]:
        """See ``Tracker``."""
        return self.sent.get(run.run_id, {})

    def write(self, run: TrackedRun, points: list[Point]) -> None:
        """See ``Tracker``."""
        settings = self.wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, init_timeout=INIT_SECONDS,
            x_disable_stats=True, x_disable_meta=True,
        )  # fmt: skip
        with self.wandb.init(
            project=self.project, id=run.run_id, name=run.label, config=run.config, dir=str(self.folder),
            mode=self.mode, resume="allow", reinit="finish_previous", settings=settings,
        ) as open_run:  # fmt: skip
            # Records of a budget come after later steps of the trunk, and its own steps may only rise.
            open_run.define_metric("tokens")
            open_run.define_metric("*", step_metric="tokens")
            for step in sorted({point[1] for point in points}):
                open_run.log({"tokens": step} | {tag: value for tag, at, value in points if at == step})
        self.sent[run.run_id] = dict(self.seen(run)) | {tag: step for tag, step, _ in points}
        with atomic_path(self.folder / SENT) as path:
            path.write_text(json.dumps(self.sent), encoding="utf-8")


def _logged_in() -> bool:
    """Whether there is a key of Weights & Biases, which nobody here reads."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _sent(path: Path) -> dict[str, dict[str, int]]:
    """What a file says went already; nothing where there is none, or it is damaged."""
    try:
        tree: Any = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):
        return {}
    return tree if isinstance(tree, dict) else {}
