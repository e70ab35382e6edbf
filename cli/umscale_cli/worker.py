"""``umscale worker``: take part in the job of a store, from any machine that can reach it."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import EXIT_PARTLY, JsonFlag, note, print_json
from umscale_cli.executors import (
    Choice,
    DeviceOption,
    PerGpuOption,
    Remarks,
    ThreadsOption,
    WorkersOption,
    choose,
    parting,
    recorded,
    stopping_noted,
)
from umscale_cli.options import takes_options
from umscale_cli.runs import is_recorded, open_store

if TYPE_CHECKING:
    from umscale.execute.job import Job
    from umscale.store.store import Store

PROGRESS_SECONDS = 20.0
LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Options of ``umscale worker``."""

    store: Annotated[
        str,
        typer.Argument(
            help="The store that the machines share: a folder or a URL such as s3://bucket/prefix."
        ),
    ]
    job: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A job of the store; default: its newest.", show_default=False),
    ] = None
    workers: WorkersOption = None
    threads: ThreadsOption = 1
    device: DeviceOption = "auto"
    per_gpu: PerGpuOption = None
    wait: Annotated[
        bool, typer.Option("--wait", help="When nothing is left, wait for further work until Ctrl-C.")
    ] = False
    json_: JsonFlag = False


@takes_options
def worker(asked: WorkerOptions) -> None:
    """Work on what a sweep or search has put into a store, until nothing of it is left.

    Any number of machines may do so, and come and go; no scheduler and no network but the store is needed.
    """
    from umscale.errors import UserError

    choice = choose("local", asked.workers, asked.threads, asked.device, per_gpu=asked.per_gpu)
    opened = open_store(asked.store)
    if is_recorded(opened):
        raise UserError(f"{opened.name} ships with umscale and is not written to")
    view = Lines(opened)
    waiting = False
    while True:
        name, worked = _work(opened, asked.job, choice, view, wait=asked.wait)
        if not asked.wait:
            break
        if worked:
            waiting = False
        if not waiting:
            waiting = True
            note(f"nothing is left; waiting for work in {opened.name} (Ctrl-C ends)")
        time.sleep(LOOK_SECONDS)
    note(f"nothing is left of job {name}; {view.summary()}")
    if asked.json_:
        print_json({"store": opened.name, "job": name, "here": view.ended})
    if view.ended.keys() - {"finished", "paused", "pruned"}:
        raise typer.Exit(EXIT_PARTLY)


def _work(
    store: "Store", job: str | None, choice: Choice, view: "Lines", *, wait: bool
) -> tuple[str | None, bool]:
    """Work on a job, or the newest, until nothing is left; returns its name and whether there was anything to do.

    Raises:
        UserError: there is no job, and none is waited for.
    """
    from umscale.errors import UserError
    from umscale.execute.job import newest_job, read_job
    from umscale.execute.workload import JOBS as SWEEPS
    from umscale.search.job import JOBS as SEARCHES

    name = job or newest_job(store)
    if name is None:
        if wait:
            return None, False
        raise UserError(f"{store.name} has no job yet; `umscale sweep` and `umscale search` put one there")
    work = read_job(store, name, {**SWEEPS, **SEARCHES})
    remaining = work.remaining(store)
    if not remaining:
        return name, False
    n_workers = min(choice.workers, remaining)
    note(f"job {name} ({work.kind}): {remaining} left; {n_workers} workers here; results in {store.name}")
    view.begin(work)
    with choice.open(store, work).join(name) as executor, stopping_noted():
        executor.run(view.handle)
    return name, True


class Lines:
    """Says what the workers here do, in plain lines."""

    def __init__(self, store: "Store") -> None:
        self.store = store
        self.labels: dict[str, str] = {}
        self.running: dict[int, tuple[str, float]] = {}
        """By worker: the run it is on, and the share of it that is done."""
        self.ended: dict[str, int] = {}
        """Runs that ended here, by status."""
        self.said = 0.0
        self.remarks = Remarks()

    def begin(self, job: "Job") -> None:
        """Prepare for a job: its store may know more cells than before."""
        cells = self.store.read("cells").select(["run_id", "label"])
        self.job = job
        self.labels = dict(zip(cells["run_id"].to_pylist(), cells["label"].to_pylist(), strict=True))
        self.said = time.monotonic()

    def handle(self, worker: int, event: dict[str, Any]) -> None:
        """Take an executor's event."""
        kind, run_id = event["event"], event.get("run", "")
        label = self.labels.get(run_id) or run_id
        self._line(self.remarks.line(event))
        if kind == "start":
            self.running[worker] = label, 0.0
        elif kind == "progress":
            self.running[worker] = label, event["steps_done"] / event["total_steps"]
        elif kind == "record":
            self._line(recorded(label, event))
        elif kind == "end":
            self.ended[event["status"]] = self.ended.get(event["status"], 0) + 1
            self.running.pop(worker, None)
            self._line(f"{label}: {event['status']}{': ' if event['reason'] else ''}{event['reason']}")
        elif kind == "exit":
            self.running.pop(worker, None)
            self._line(parting(event))
        if time.monotonic() - self.said > PROGRESS_SECONDS:
            doing = ", ".join(f"{name} {share:.0%}" for name, share in self.running.values())
            self._line(f"{self.job.remaining(self.store)} left; here: {doing or 'starting'}")

    def summary(self) -> str:
        """Return how many runs ended here, by status."""
        counts = ", ".join(f"{n} {status}" for status, n in sorted(self.ended.items()))
        return f"of its runs here: {counts}" if counts else "no run was left for this machine"

    def _line(self, text: str) -> None:
        if text:
            self.said = time.monotonic()
            note(text)
