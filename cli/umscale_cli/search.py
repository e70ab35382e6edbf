"""``umscale search``: let Optuna choose which models of a study to train."""

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.completion import studies
from umscale_cli.console import JsonFlag, SetOption, StoreOption, count, duration, note, out, print_json
from umscale_cli.executors import (
    Choice,
    ExecutorOptions,
    Remarks,
    parting,
    stopping_noted,
)
from umscale_cli.options import takes_options
from umscale_cli.runs import DEFAULT_ROOT, results_folder

if TYPE_CHECKING:
    import optuna

    from umscale.search.bridge import Bridge
    from umscale.search.job import SearchJob
    from umscale.search.results import Found
    from umscale.spec import RunSpec

_SPACE_POINTS = 200  # random points of a dry run
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions(ExecutorOptions):
    """Options of ``umscale search``."""

    study: Annotated[
        str,
        typer.Argument(
            help="A study file with a [search] table, or one that ships with umscale.", autocompletion=studies
        ),
    ]
    store: StoreOption = None
    set_: SetOption = None
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all; default the study's.", show_default=False)
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option(help="tpe, gp, nsga2, nsga3, cmaes, qmc, random or brute_force.", show_default=False),
    ] = None
    pruner: Annotated[
        str | None, typer.Option(help="none, median, hyperband, asha or wilcoxon.", show_default=False)
    ] = None
    storage: Annotated[
        str | None,
        typer.Option(
            help="An Optuna storage URL or journal file; default a journal in the store.", show_default=False
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of the sampler.")] = 0
    warm_start: Annotated[
        bool, typer.Option(help="Take finished runs of the store that lie in the space as trials.")
    ] = True
    winners: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a study that trains the best trials again.", show_default=False
        ),
    ] = None
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each winner in that study.")] = 3
    show: Annotated[bool, typer.Option("--show", help="Print what was found so far; train nothing.")] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the space and how much of it is feasible; write nothing.")
    ] = False
    measure: Annotated[
        bool, typer.Option(help="Dry run: time a few steps to say how long it takes; else only count.")
    ] = True
    json_: JsonFlag = False


@takes_options
def search(asked: SearchOptions) -> None:
    """Search a study's space with Optuna; every trial is a run of the store.

    The same command continues a search, on as many machines as share the store. optuna-dashboard and Optuna's own
    command line open its storage as it is.
    """
    from umscale.execute.claimed_run import STORAGE_VARIABLE
    from umscale.search.results import summarise

    choice = asked.choice(planning=asked.dry_run or asked.show)
    bridge = _bridge(asked)
    if asked.dry_run:
        _dry_run(bridge, asked.seed, choice.workers, asked.threads if asked.measure else 0, asked.json_)
        return
    if asked.storage:
        os.environ[STORAGE_VARIABLE] = asked.storage
    found = summarise(bridge, _look(bridge, asked.storage) if asked.show else _search(asked, bridge, choice))
    _write_winners(asked, bridge, found)
    if asked.json_:
        print_json(
            {
                "study": bridge.study.name,
                "objectives": found.objectives,
                "trials": [asdict(t) for t in found.trials],
                "best": [t.number for t in found.best],
                "repeated": found.repeated,
                "importances": found.importances,
            }
        )
    else:
        _print(bridge, found)
        for path in _figures(found, results_folder(bridge.store, bridge.study.name) / "figures"):
            out().print(f"Figure    {path}", soft_wrap=True)
    if asked.winners is not None:
        note(f"wrote {asked.winners}; run it with: umscale sweep {asked.winners}")


def _bridge(asked: SearchOptions) -> "Bridge":
    """The study that is searched with the settings given, and its store, which need not be there yet."""
    from umscale.design.study import load_study, parse
    from umscale.errors import UserError
    from umscale.machine import resolve_precision
    from umscale.search.bridge import Bridge
    from umscale.search.settings import parse_settings
    from umscale.store.store import Store
    from umscale_cli.runs import open_store

    if asked.show and not Path(asked.study).suffix:
        opened = open_store(str(asked.store or asked.study))
        plan = parse(opened.study_tree(), opened.files.describe("study.toml"))
    else:
        plan = load_study(asked.study, asked.set_ or ())
        opened = Store(asked.store or DEFAULT_ROOT / plan.name)
    if not plan.search:
        raise UserError(
            f"study {plan.name!r} has no [search] table: say what to vary, see `umscale search --help`"
        )
    given = {"sampler": asked.sampler, "pruner": asked.pruner, "n_trials": asked.trials}
    tree = {**plan.search, **{key: value for key, value in given.items() if value is not None}}
    settings = parse_settings(tree)
    known = Store.open_if_any(opened.address)
    precision = known.pinned_precision() if known else None
    precision = precision or resolve_precision(plan.reference.train.precision)
    return Bridge(replace(plan, search=tree), settings, opened, precision)


def _look(bridge: "Bridge", storage: str | None) -> "optuna.Study":
    """A search as it stands."""
    from umscale.errors import UserError
    from umscale.store.store import Store

    if Store.open_if_any(bridge.store.address) is None:
        raise UserError(f"there is no store at {bridge.store.name}; leave out --show to begin the search")
    return bridge.look(storage)


def _search(asked: SearchOptions, bridge: "Bridge", choice: Choice) -> "optuna.Study":
    """Begin a search or continue it, to its last trial."""
    from umscale.search.job import SearchJob
    from umscale.store.store import Store

    job = SearchJob(
        study=bridge.study.to_dict(),
        precision=bridge.precision,
        n_trials=bridge.settings.n_trials,
        n_workers=choice.workers,
        seed=asked.seed,
    )
    opened = bridge.store
    Store.create(opened.address)
    for damage in opened.repair():
        note(damage)
    if opened.pinned_precision() is None:
        opened.pin_precision(bridge.precision)
    opened.write_design(bridge.study, [])
    study = job.open(bridge)
    _run(bridge, study, job, choice, asked.warm_start)
    return study


def _write_winners(asked: SearchOptions, bridge: "Bridge", found: "Found") -> None:
    from umscale.errors import UserError
    from umscale.files import write_text
    from umscale.search.results import winners_study

    if asked.winners is None:
        return
    if not found.best:
        raise UserError("no trial has finished: there are no winners yet")
    write_text(asked.winners, winners_study(bridge, found, asked.seeds))


def _run(bridge: "Bridge", study: "optuna.Study", job: "SearchJob", choice: Choice, warm_start: bool) -> None:
    from umscale.search.job import over

    store = bridge.store
    if warm_start and (taken := bridge.warm_start(study)):
        note(f"{taken} finished runs of the store lie in the space: trials to begin with")
    done = len(over(study))
    note(
        f"{bridge.study.name}: {job.n_trials} trials by {bridge.settings.sampler}, {done} already over, "
        f"{job.n_workers} workers{'' if choice.kind == 'local' else f' on {choice.kind}'}; results in {store.name}"
    )
    try:
        with choice.open(store, job) as executor, stopping_noted():
            executor.run(_View(bridge, job.n_trials, done, time.monotonic()))
    except KeyboardInterrupt:
        note("stopped (the same command continues)")
        raise


class _View:
    """A line for every trial that ends, and now and then one for where the others are."""

    SECONDS = 30.0

    def __init__(self, bridge: "Bridge", n_trials: int, done: int, began: float) -> None:
        self.objectives, self.n_trials, self.done, self.began = (
            bridge.settings.objectives,
            n_trials,
            done,
            began,
        )
        self.at: dict[str, str] = {}
        self.remarks = Remarks()
        self.last = began

    def __call__(self, worker: int, event: dict[str, Any]) -> None:
        kind = event["event"]
        if words := self.remarks.line(event):
            self._line(words)
        if kind == "trial":
            self.done += 1
            values = event["values"]
            said = event["reason"] or ", ".join(
                f"{name} {_value(name, v)}" for name, v in zip(self.objectives, values or (), strict=False)
            )
            if event.get("same_as") is not None:
                said += f" (the model of trial {event['same_as']} again: nothing was trained)"
            self._line(f"trial {event['number']} ({self.done} of {self.n_trials}): {event['label']}: {said}")
        elif kind == "progress":
            share = event["steps_done"] / event["total_steps"]
            self.at[event["run"]] = f"{event['run'][:8]} {share:.0%} loss {event['loss']:.3f}"
            if time.monotonic() - self.last > self.SECONDS:
                self._line(f"{duration(time.monotonic() - self.began)}: {'; '.join(self.at.values())}")
        elif kind == "end":
            self.at.pop(event["run"], None)
        elif kind in ("exit", "requeued") and (words := parting(event)):
            self._line(words)

    def _line(self, text: str) -> None:
        self.last = time.monotonic()
        note(text)


def _value(name: str, value: float) -> str:
    from umscale.search.settings import MEASURED

    return f"{value:.4f}" if name in MEASURED else count(value)


def _print(bridge: "Bridge", found: "Found") -> None:
    from rich.table import Table

    console = out()
    best = found.best
    title = "Best trial" if len(found.objectives) == 1 else f"Front: {len(best)} trials that no other beats"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    costs = [c for c in ("total_params", "flops_per_token") if c not in found.objectives]
    for name in ("trial", "run", *bridge.settings.space, *found.objectives, *costs):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name == "run")
    for row in best:
        record = bridge.store.final_record(row.run_id or "") or {}
        params = [row.params[name] for name in bridge.settings.space]
        table.add_row(
            str(row.number),
            (row.run_id or "")[:8],
            *(f"{p:.4g}" if isinstance(p, float) else str(p) for p in params),
            *(_value(n, v) for n, v in zip(found.objectives, row.values or (), strict=True)),
            *(count(record.get(c)) for c in costs),
        )
    console.print(table)
    states = dict.fromkeys(row.state for row in found.trials)
    console.print(
        f"\n{len(found.trials)} trials: "
        + ", ".join(f"{found.count(s)} {'finished' if s == 'complete' else s}" for s in states)
    )
    if found.repeated:
        console.print(
            f"{found.repeated} of them asked for a model that an earlier one had, and trained nothing; --trials asks "
            "for more",
            soft_wrap=True,
        )
    if found.importances:
        for name, shares in found.importances.items():
            said = ", ".join(f"{n} {s:.0%}" for n, s in shares.items())
            console.print(f"what matters to {name} (PED-ANOVA): {said}", soft_wrap=True)
    else:
        console.print(f"importances: {found.why_no_importances}")


def _figures(found: "Found", folder: Path) -> list[Path]:
    from umscale.errors import UserError
    from umscale.figures.kinds import SEARCH_KINDS
    from umscale.plots.style import save

    written = []
    for name, kind in SEARCH_KINDS.items():
        try:
            figures = kind.draw(found)
        except UserError:
            continue
        written += [save(figure, folder / f"search-{name}{suffix}.png") for suffix, figure in figures.items()]
    return written


def _dry_run(bridge: "Bridge", seed: int, n_workers: int, threads: int, json_: bool) -> None:
    """Say what would be searched, and try random points of the space."""
    import numpy as np

    from umscale.execute.estimate import estimate

    runs, why = _random_points(bridge, seed)
    seconds = estimate(runs, threads).runs if runs and threads else ()
    typical = float(np.median(seconds)) if seconds else float("nan")
    settings = bridge.settings
    total = typical * settings.n_trials / n_workers
    if json_:
        print_json(
            {
                "space": {
                    k: list(v) if isinstance(v, tuple) else asdict(v) for k, v in settings.space.items()
                },
                "objectives": settings.objectives,
                "sampler": settings.sampler,
                "trials": settings.n_trials,
                "feasible": len(runs) / _SPACE_POINTS,
                "reasons": why,
                "seconds_a_trial": typical,
                "seconds": total,
            }
        )
        return
    console = out()
    for name, entry in settings.space.items():
        words = (
            ", ".join(map(str, entry))
            if isinstance(entry, tuple)
            else f"{entry.low:g} to {entry.high:g}{' (log)' if entry.log else ''}"
        )
        console.print(f"{name}: {words}")
    limits = ", ".join(f"{name} at most {count(limit)}" for name, limit in settings.constraints.items())
    console.print(f"minimise {', '.join(settings.objectives)}; {limits or 'no constraints'}")
    console.print(
        f"{len(runs)} of {_SPACE_POINTS} random points are feasible ({why['over budget']} over budget, "
        f"{why['not solvable']} with dimensions no model has)"
    )
    if seconds:
        console.print(
            f"{settings.n_trials} trials by {settings.sampler}, {duration(typical)} each, about {duration(total)} with "
            f"{n_workers} workers. Nothing was written."
        )


def _random_points(bridge: "Bridge", seed: int) -> "tuple[list[RunSpec], dict[str, int]]":
    """The runs of random points that are feasible, and how many of the others fail for what."""
    import optuna

    from umscale.errors import UserError
    from umscale.search.bridge import quiet

    with quiet():
        study = optuna.create_study(
            directions=["minimize"] * len(bridge.settings.objectives),
            sampler=optuna.samplers.RandomSampler(seed=seed),
        )
        points = [study.ask(bridge.distributions()).params for _ in range(_SPACE_POINTS)]
    runs: list[RunSpec] = []
    why = {"not solvable": 0, "over budget": 0}
    for params in points:
        try:
            run = bridge.cell(params).run
        except UserError:
            run = None
        if run is None:
            why["not solvable"] += 1
        elif max(bridge.excess(run).values(), default=0.0) > 0:
            why["over budget"] += 1
        else:
            runs.append(run)
    return runs, why
