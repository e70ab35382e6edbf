"""``umscale sweep``: train a study's cells, store every result, then fit and draw what they say."""

import contextlib
import os
import shlex
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.completion import studies
from umscale_cli.console import (
    EXIT_PARTLY,
    JsonFlag,
    SetOption,
    StoreOption,
    duration,
    err,
    note,
    out,
    print_json,
    show,
)
from umscale_cli.dry_run import show_plan
from umscale_cli.executors import (
    WAITING,
    Choice,
    ExecutorOptions,
    Remarks,
    parting,
    recorded,
    stopping_noted,
)
from umscale_cli.options import takes_options
from umscale_cli.runs import DEFAULT_ROOT, print_runs, results_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from umscale.design.study import Cell, Study
    from umscale.execute.workload import Plan
    from umscale.store.store import Store

PLAIN_SECONDS = 20.0
KEPT_LINES = 200
"""Lines that are shown again when a terminal changes its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions(ExecutorOptions):
    """Options of ``umscale sweep``."""

    study: Annotated[
        str,
        typer.Argument(
            help="A study that ships with umscale (quickstart) or a .toml file.", autocompletion=studies
        ),
    ]
    store: StoreOption = None
    set_: SetOption = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and what they cost; write nothing.")
    ] = False
    measure: Annotated[
        bool, typer.Option(help="Dry run: time a few steps to say how long it takes; else only count.")
    ] = True
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1.0,
            help="Deviation from a target that a cell may have.",
            show_default="the study's, 0.01",
        ),
    ] = None
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the study after overrides.")] = (
        False
    )
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Train failed and diverged runs again.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Train every run again, replacing its results.")] = (
        False
    )
    trainer: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Let a command train each cell, as in 'python train.py {spec} {out}'; docs/own-trainers.md.",
            show_default=False,
        ),
    ] = None
    track: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKER",
            help="Follow the records in tensorboard or wandb, in ./umscale-tracked; needs umscale[trackers].",
            show_default=False,
        ),
    ] = None
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Pause each run after its budgets up to TOKENS (2.5M); the same command without it goes on.",
            show_default="train to the end",
        ),
    ] = None
    report: Annotated[bool, typer.Option(help="Fit and plot when the sweep is done.")] = True
    json_: JsonFlag = False


@takes_options
def sweep(asked: SweepOptions) -> None:
    """Train a grid of proxy language models and store every result.

    Finished runs are skipped and interrupted ones continue, so the same command resumes a sweep. A long one can be done
    in parts: with --until TOKENS, runs are paused after the last budget of at most that many, and go on later as if
    they never had been.
    """
    from umscale.design.study import load_study
    from umscale.execute.workload import make_plan
    from umscale.spec import quantity

    tolerance = [f"tolerance={asked.tolerance!r}"] if asked.tolerance else []
    plan_study = load_study(asked.study, [*(asked.set_ or ()), *tolerance])
    if asked.print_config:
        print(plan_study.to_toml(), end="")
        return
    if asked.trainer is not None:
        _check_trainer(asked.trainer, asked.executor, asked.until)
    choice = asked.choice(planning=asked.dry_run)
    root = asked.store or str(DEFAULT_ROOT / plan_study.name)
    cells, precision = planned(plan_study, root)
    end = None if asked.until is None else int(quantity(asked.until, "--until"))
    if asked.dry_run:
        show_plan(plan_study, cells, choice.workers, asked.threads if asked.measure else 0, asked.json_, end)
        return
    plan = make_plan(plan_study.name, cells, end)
    opened = ready(root, precision)
    _clear(opened, cells, asked.retry_failed, asked.force)
    opened.write_design(plan_study, cells)
    began = time.monotonic()
    if asked.trainer is not None:
        plan = _with_trainer(plan, opened, asked.trainer)
    with _tracked(asked.track, opened, root) as news:
        _train(opened, plan, cells, choice, news)
    summary = _summary(opened, cells, time.monotonic() - began)
    if asked.json_:
        print_json(summary)
    else:
        _print_results(opened, plan_study, cells, summary)
        if asked.report:
            _report(opened, plan_study, asked.study)
    if summary["failed"] or summary["diverged"] or summary["infeasible"]:
        raise typer.Exit(EXIT_PARTLY)


def planned(study: "Study", root: str) -> "tuple[list[Cell], str]":
    """Return a study's cells, and what precision ``auto`` means in the store at ``root`` if there is one."""
    from umscale.execute import preparation

    return preparation.planned(study, root)


def ready(root: str, precision: str) -> "Store":
    """Open a store for training, made first where there is none; say what is damaged there and set aside."""
    from umscale.execute import preparation

    opened, damages = preparation.ready(root, precision)
    for damage in damages:
        note(damage)
    return opened


def _clear(store: "Store", cells: "list[Cell]", retry_failed: bool, force: bool) -> None:
    """Remove the stored results that the user asked to redo."""
    if not (retry_failed or force):
        return
    statuses = store.statuses()
    for run_id, run in {cell.run_id: cell.run for cell in cells}.items():
        status = statuses.get(run_id)
        if status is not None and (force or status in ("failed", "diverged")):
            store.forget(run_id, run.trunk_id if run else None)


# ---------------------------------------------------------------------------------------------------------
# Training, live


def _check_trainer(command: str, executor: str, until: str | None) -> None:
    """Raise UserError for a --trainer that cannot be used."""
    from umscale.errors import UserError
    from umscale.execute.own_trainer import check_command

    check_command(command)
    if executor != "local":
        raise UserError(
            f"--trainer goes with --executor local, not {executor}: it is started on this machine alone"
        )
    if until is not None:
        raise UserError("--until pauses runs of umscale's own trainer; leave it out with --trainer")


def _with_trainer(plan: "Plan", store: "Store", command: str) -> "Plan":
    """Return the plan as one whose runs a command trains, which workers hear of by their environment."""
    from umscale.execute.own_trainer import TRAINER_VARIABLE, TrainerPlan, check_store

    check_store(store, plan.run_ids)
    os.environ[TRAINER_VARIABLE] = command
    return TrainerPlan(study=plan.study, runs=plan.runs)


@contextlib.contextmanager
def _tracked(kind: str | None, store: "Store", root: str) -> "Iterator[Callable[[], None]]":
    """Follow the sweep in a tracker; gives what is called when something was recorded."""
    if kind is None:
        yield lambda: None
        return
    from umscale.errors import UserError
    from umscale.track.follow import Following
    from umscale.track.trackers import KINDS, open_tracker
    from umscale_cli.track import folder_of

    if kind not in KINDS:
        raise UserError(f"--track {kind!r} is none of {', '.join(KINDS)}")
    folder = folder_of(root, kind)
    with Following(root, lambda: open_tracker(kind, folder, store.name), note) as following:
        note(f"tracked in {folder}")
        yield following.news


def _train(
    store: "Store", plan: "Plan", cells: "list[Cell]", choice: Choice, news: "Callable[[], None]"
) -> None:
    remaining = plan.unfinished(store)
    done = len(plan.runs) - len(remaining)
    where = "" if choice.kind == "local" else f" on {choice.kind}"
    n_workers = min(choice.workers, len(remaining))
    note(
        f"{plan.study}: {len(plan.runs)} runs, {done} already done, {n_workers} workers{where}; results in {store.name}"
    )
    _note_missing_weights(store, plan, set(remaining))
    if not remaining:
        return
    view = View(plan, {cell.run_id: cell.label for cell in cells}, set(remaining), choice.kind != "local")
    try:
        with choice.open(store, plan) as executor, stopping_noted(), view:
            executor.run(_both(view.handle, news))
    except KeyboardInterrupt:
        note("stopped (the same command continues)")
        raise


def _both(
    handle: "Callable[[int, dict[str, Any]], None]", news: "Callable[[], None]"
) -> "Callable[[int, dict[str, Any]], None]":
    """What takes an executor's event, and says where something was recorded."""

    def take(worker: int, event: dict[str, Any]) -> None:
        handle(worker, event)
        if event["event"] in ("record", "end"):
            news()

    return take


def _note_missing_weights(store: "Store", plan: "Plan", remaining: set[str]) -> None:
    """Say for how many finished runs weights are asked for that are not there: they were trained without."""
    asked = [run_id for run, run_id in zip(plan.runs, plan.run_ids, strict=True) if run.train.keep != "none"]
    over = [run_id for run_id in asked if run_id not in remaining]
    bare = sum(not store.files.entries(store.weights_folder(run_id)) for run_id in over)
    if bare:
        note(f"{bare} runs that are over were trained without keeping weights; --force trains them again")


class View:
    """Shows a sweep: a live table on a terminal, plain lines elsewhere."""

    def __init__(
        self, plan: "Plan", labels: dict[str, str], remaining: set[str], elsewhere: bool = False
    ) -> None:
        from umscale.execute.workload import run_weight

        self.labels = labels
        self.weight = {
            run.run_id: run_weight(run, plan.until) for run in plan.runs if run.run_id in remaining
        }
        self.progress: dict[str, dict[str, Any]] = {}
        self.first: dict[str, float] = {}
        self.share: dict[str, float] = {}
        self.finished = 0
        self.remarks = Remarks(elsewhere)
        self.queued: set[int] = set()
        """Workers that wait in a scheduler's queue."""
        self.began = time.monotonic()
        self.last_line = self.began
        self.console = err()
        self.size = self.console.size
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.live: Any = None

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self._go_live()
        return self

    def _go_live(self) -> None:
        from rich.live import Live

        self.live = Live(
            self._render(), console=self.console, refresh_per_second=4, get_renderable=self._render
        )
        self.live.start()

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            with contextlib.suppress(OSError):  # the terminal is gone, and the workers are to be stopped
                self.live.stop()

    def handle(self, worker: int, event: dict[str, Any]) -> None:
        """Take an executor's event."""
        kind, run_id = event["event"], event.get("run", "")
        label = self.labels.get(run_id, run_id)
        self._follow_size()
        self._line(self.remarks.line(event))
        if kind == "progress":
            share = event["steps_done"] / event["total_steps"]
            self.first.setdefault(run_id, share)
            self.share[run_id] = share
            self.progress[run_id] = event | {"worker": worker}
        elif kind == "record":
            self._line(recorded(label, event))
        elif kind == "end":
            self.progress.pop(run_id, None)
            self.share[run_id] = 1.0
            self.finished += 1
            if event["status"] not in ("finished", "paused"):
                self._line(f"{label}: {event['status']}: {event['reason']}")
        elif kind == "queue":
            self.queued = self.queued | {worker} if event["state"] in WAITING else self.queued - {worker}
        elif kind in ("exit", "requeued"):
            self.queued -= {worker}
            self.progress = {k: v for k, v in self.progress.items() if v["worker"] != worker}
            self._line(parting(event))
        if kind == "progress" and self.live is None and time.monotonic() - self.last_line > PLAIN_SECONDS:
            self._line(self._overall())

    def _line(self, text: str) -> None:
        if not text:
            return
        self.last_line = time.monotonic()
        self.lines.append(text)
        if self.live is not None:
            self.console.print(text)
        else:
            note(text)

    def _follow_size(self) -> None:
        """Draw everything anew when the terminal has another size: what stands there was wrapped by it."""
        if self.live is None or self.console.size == self.size:
            return
        self.size = self.console.size
        self.live.stop()
        self.console.clear()
        for line in list(self.lines):
            self.console.print(line)
        self._go_live()

    def _fraction(self) -> tuple[float, float]:
        """Return the share of this sweep's work that is done, and the share done since it started."""
        total = sum(self.weight.values()) or 1.0
        done = sum(w * self.share.get(run_id, 0.0) for run_id, w in self.weight.items())
        before = sum(w * self.first.get(run_id, 0.0) for run_id, w in self.weight.items())
        return done / total, (done - before) / total

    def _overall(self) -> str:
        done, since = self._fraction()
        elapsed = time.monotonic() - self.began
        left = f"about {duration(elapsed * (1 - done) / since)} left" if since > 0.01 else "estimating"
        queued = f", {len(self.queued)} workers in the queue" if self.queued else ""
        return (
            f"{self.finished} of {len(self.weight)} runs, {done:.0%} of the work, {duration(elapsed)} so far, {left}"
            f"{queued}"
        )

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("run", "", "phase", "loss", "tokens/s"):
            table.add_column(name, justify="right" if name in ("loss", "tokens/s") else "left", no_wrap=True)
        for run_id, event in self.progress.items():
            bar = ProgressBar(total=event["total_steps"], completed=event["steps_done"], width=24)
            table.add_row(
                self.labels.get(run_id, run_id),
                bar,
                event["phase"],
                f"{event['loss']:.3f}",
                f"{event['tokens_per_second']:,.0f}",
            )
        done, _ = self._fraction()
        overall = Table.grid(padding=(0, 2))
        overall.add_row(ProgressBar(total=1.0, completed=done, width=40), Text(self._overall()))
        return Group(table, overall)


# ---------------------------------------------------------------------------------------------------------
# Afterwards


def _summary(store: "Store", cells: "list[Cell]", seconds: float) -> dict[str, Any]:
    statuses = store.statuses()
    mine = [statuses.get(run_id, "missing") for run_id in dict.fromkeys(cell.run_id for cell in cells)]
    return {
        "store": store.name,
        "runs": len(mine),
        "seconds": seconds,
        **{
            status: mine.count(status)
            for status in ("finished", "paused", "diverged", "failed", "infeasible")
        },
    }


def _print_results(store: "Store", study: "Study", cells: "list[Cell]", summary: dict[str, Any]) -> None:
    console = out()
    print_runs(store, console)
    other = ", ".join(
        f"{summary[s]} {s}" for s in ("paused", "diverged", "failed", "infeasible") if summary[s]
    )
    console.print(
        f"\n{summary['finished']} of {summary['runs']} runs finished in {duration(summary['seconds'])}"
        + (f"; {other}" if other else "")
    )


def _report(store: "Store", study: "Study", source: str) -> None:
    """Fit the first laws, draw the first figure, and say what to do next."""
    from umscale.errors import UserError
    from umscale.questions.question import Asked, find
    from umscale_cli.fit import basis_blocks
    from umscale_cli.plot import plot_store

    console = out()
    try:
        answer = find(store.question()).answer(store.columns(), Asked(losses=("loss",), read=store.read))
        show(answer.basis(), folds=False)
        show(answer.blocks())
        show(basis_blocks(store, store.columns()))
    except UserError as error:
        console.print(f"\nNo fit yet: {error}")
        return
    kinds = ["architectures"] if study.question == "architectures" else ["density"]
    try:
        figures = plot_store(store, kinds, results_folder(store, study.name) / "figures", ["png"])
    except UserError as error:
        figures = []
        console.print(f"\nNo figure: {error}")
    console.print(
        f"\nResults   {store.files.describe('runs')} (Parquet: pandas, Polars, DuckDB and pyarrow read it as it is)"
    )
    for figure in figures:
        console.print(f"Figure    {figure}")
    where = shlex.quote(store.name)
    console.print(f"Next      umscale fit {where}        the laws and the verdict again, --json for machines")
    console.print(f"          umscale plot {where}       more figures, PNG, SVG or PDF")
    same = "" if store.name == str(DEFAULT_ROOT / study.name) else f" --store {where}"
    more = f"umscale sweep {source}{same} --set 'axes.seed=[0,1,2]'"
    console.print(f"          {more}   more seeds, narrower intervals", soft_wrap=True)
