"""A search as a job: every worker asks Optuna for a trial, trains it unless there is no need, and tells the outcome."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from umscale.design.study import Cell, parse
from umscale.errors import UserError
from umscale.execute.claimed_run import STORAGE_VARIABLE, Reporter, train_one
from umscale.execute.job import Kinds
from umscale.search.bridge import Bridge, quiet
from umscale.search.settings import parse_settings
from umscale.spec import RunSpec
from umscale.store.store import Store
from umscale.training.record import spec_row

if TYPE_CHECKING:
    import optuna

    from umscale.training.run import Outcome, Progress

POINTS = 20
"""Reports a run makes along its trunk, at equal distances."""
WAIT_SECONDS = 1.0
UNCLAIMED_SECONDS = 30.0  # between asking for a trial and claiming its run
SAME_AS = "same_as"
"""User attribute of a trial that asked for a model again: the trial that had it first. It counts as any other."""
VOID = "void"
"""User attribute of trials that do not count: interrupted ones, which were asked for again, and those too many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchJob:
    """What every worker of a search needs to know."""

    kind: ClassVar[str] = "search"

    study: Mapping[str, Any]
    """The study file's tree, with its [search] table."""
    precision: str
    n_trials: int
    n_workers: int
    seed: int

    def bridge(self, store: Store) -> Bridge:
        """The search opened on a store."""
        study = parse(self.study, "study")
        return Bridge(study, parse_settings(study.search), store, self.precision)

    def open(self, bridge: Bridge) -> "optuna.Study":
        """The Optuna study; one worker that starts afresh draws the same trials for the same seed."""
        study = bridge.open(_storage())
        before = len(study.get_trials(deepcopy=False))
        worker = os.getpid() if self.n_workers > 1 else 0
        study.sampler = bridge.sampler((self.seed, before, worker))
        return study

    def remaining(self, store: Store) -> int:
        """Trials that are not over."""
        study = self.bridge(store).look(_storage())
        return max(0, self.n_trials - len(over(study)))

    def work(self, store: Store, report: Reporter, device_name: str) -> None:
        """Ask, train and tell until there are enough trials."""
        bridge = self.bridge(store)
        study = self.open(bridge)
        distributions = bridge.distributions()
        while not report.stopping:
            recover(study, store)
            if len(over(study)) >= self.n_trials:
                return
            if len(counted(study)) >= self.n_trials:  # the last ones are in others' hands
                time.sleep(WAIT_SECONDS)
                continue
            with quiet():
                trial = study.ask(distributions)
            if [t.number for t in counted(study)].index(trial.number) >= self.n_trials:
                _void(study, trial.number)
                continue
            _do(bridge, study, trial, report, device_name)

    def give_up(self, store: Store, run_id: str, reason: str) -> None:
        """Record a run as failed, unless another worker has it."""
        runs = {run.run_id: run for run in store.specs("running")}
        with store.claim(run_id) as mine:
            if mine and run_id in runs:
                store.fail_run(spec_row(runs[run_id]), str(self.study["name"]), reason)

    def to_tree(self) -> dict[str, Any]:
        """The job as JSON."""
        return {
            "study": dict(self.study),
            "precision": self.precision,
            "n_trials": self.n_trials,
            "n_workers": self.n_workers,
            "seed": self.seed,
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "SearchJob":
        """Read what ``to_tree`` gave."""
        return cls(
            study=dict(tree["study"]),
            precision=str(tree["precision"]),
            n_trials=int(tree["n_trials"]),
            n_workers=int(tree["n_workers"]),
            seed=int(tree["seed"]),
        )


def _storage() -> str | None:
    return os.environ.get(STORAGE_VARIABLE) or None


def counted(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials of the search that were begun, in order; those taken from the store come on top."""
    from optuna.trial import TrialState

    return [
        t
        for t in study.get_trials(deepcopy=False)
        if t.state != TrialState.WAITING and VOID not in t.user_attrs and "source" not in t.user_attrs
    ]


def over(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials of the search that are over."""
    return [t for t in counted(study) if t.state.is_finished()]


def recover(study: "optuna.Study", store: Store) -> None:
    """Ask again for trials whose worker is gone: a dead worker holds no claim on its run."""
    from datetime import datetime

    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        run_id = trial.user_attrs.get("run_id")
        began = trial.datetime_start
        if began is not None and (datetime.now() - began).total_seconds() < UNCLAIMED_SECONDS:
            continue
        if run_id is not None:
            with store.claim(run_id) as free:
                if not free:
                    continue
        _void(study, trial.number)
        study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})


def _void(study: "optuna.Study", number: int) -> None:
    from optuna.trial import TrialState

    found = study.get_trials(deepcopy=False)[number]
    study._storage.set_trial_user_attr(found._trial_id, VOID, True)
    with quiet():
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def _do(
    bridge: Bridge, study: "optuna.Study", trial: "optuna.Trial", report: Reporter, device_name: str
) -> None:
    """Bring one trial to its end."""
    from optuna.trial import TrialState

    def tell(
        state: Any, reason: str = "", values: "list[float] | None" = None, same_as: int | None = None
    ) -> None:
        if reason:
            trial.set_user_attr("reason", reason)
        if same_as is not None:
            trial.set_user_attr(SAME_AS, same_as)
        with quiet():
            study.tell(trial, values, state, skip_if_finished=True)
        report(
            "trial", number=trial.number, state=state.name.lower(), reason=reason, values=values,
            label=trial.user_attrs.get("label", ""), same_as=same_as,
        )  # fmt: skip

    try:
        cell = bridge.cell(trial.params)
    except UserError as error:  # dimensions that no model can have
        tell(TrialState.PRUNED, f"infeasible: {error}")
        return
    trial.set_user_attr("label", cell.label)
    if cell.run is None:
        tell(TrialState.PRUNED, f"infeasible: {cell.reason}")
        return
    run = cell.run
    excess = bridge.excess(run)
    for name, share in excess.items():
        trial.set_constraint(name, share)
    broken = [f"{name} by {share:.0%}" for name, share in excess.items() if share > 0]
    if broken:
        tell(TrialState.PRUNED, f"over budget: {', '.join(broken)}")
        return
    trial.set_user_attr("run_id", run.run_id)
    store = bridge.store
    store.write_cells([cell], bridge.study.name)
    while not report.stopping:
        with store.claim(run.run_id) as mine:
            if mine:
                _train(bridge, study, trial, run, cell, report, device_name, tell)
                return
        time.sleep(WAIT_SECONDS)  # another trial of the same model is being trained
    _void(study, trial.number)
    study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})


def _train(
    bridge: Bridge,
    study: "optuna.Study",
    trial: "optuna.Trial",
    run: RunSpec,
    cell: Cell,
    report: Reporter,
    device_name: str,
    tell: Any,
) -> None:
    from optuna.trial import TrialState

    store, name = bridge.store, bridge.study.name
    values = bridge.values(run)
    if values is not None:
        tell(TrialState.COMPLETE, values=values, same_as=_earlier(study, trial.number, run.run_id))
        return
    status = store.status(run.run_id)
    if status in ("diverged", "failed"):
        tell(TrialState.PRUNED, f"{status} before")
        return
    watch = TrialWatch(bridge=bridge, trial=trial, trunk_steps=run.branch_steps[-1], run=run)
    outcome = train_one(store, name, run, report, device_name, watch)
    if outcome is not None and outcome.status == "finished":
        tell(TrialState.COMPLETE, values=bridge.values(run))
    elif outcome is not None:
        tell(TrialState.PRUNED, f"diverged: {outcome.reason}")
    elif watch.pruned:
        reason = f"pruned by {bridge.settings.pruner} at {watch.point}"
        store.write_run(spec_row(run), name, status="pruned", reason=reason)
        report("end", run=run.run_id, status="pruned", reason=reason)
        tell(TrialState.PRUNED, reason)
    elif report.stopping:  # its checkpoint is kept: the trial that repeats it goes on from there
        _void(study, trial.number)
        study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})
    else:
        tell(TrialState.FAIL, "failed")


def _earlier(study: "optuna.Study", number: int, run_id: str) -> int | None:
    """Return the first trial before ``number`` that has this run; None if the store had it from elsewhere."""
    same = [t.number for t in study.get_trials(deepcopy=False) if t.user_attrs.get("run_id") == run_id]
    return next((n for n in same if n < number), None)


@dataclass(kw_only=True, slots=True)
class TrialWatch:
    """Reports a run to its trial and stops it when the pruner says so.

    The training loss along the trunk is reported ``POINTS`` times, each the mean since the last; the branches that
    decay are never compared. The Wilcoxon pruner gets the documents' losses at the first stable record instead,
    document by document, so that it compares pairs.
    """

    bridge: Bridge
    trial: "optuna.Trial"
    run: RunSpec
    trunk_steps: int
    pruned: bool = False
    point: str = ""
    reported: int = 0
    losses: list[float] = field(default_factory=list)

    def progress(self, progress: "Progress") -> None:
        """Report the trunk's training loss."""
        if progress.phase != "trunk" or not self._single or self.bridge.settings.pruner == "wilcoxon":
            return
        self.losses.append(progress.loss)
        step = progress.tokens // self.run.tokens_per_step
        if (reached := POINTS * step // self.trunk_steps) > self.reported:
            self.reported = reached
            self.trial.report(sum(self.losses) / len(self.losses), reached)
            self.losses.clear()
            self._ask(f"{progress.tokens} tokens")

    def record(self, outcome: "Outcome") -> None:
        """Report the documents of the first record."""
        if len(outcome.records) != 1 or not self._single or self.bridge.settings.pruner != "wilcoxon":
            return
        for i, row in enumerate(outcome.documents):
            self.trial.report(row["nats"] / row["n_tokens"], i)
        self._ask(f"{outcome.records[0]['tokens']} tokens")

    def should_stop(self) -> bool:
        """Whether the pruner has had enough."""
        return self.pruned

    def _ask(self, point: str) -> None:
        with quiet():
            self.pruned = self.trial.should_prune()
        self.point = point

    @property
    def _single(self) -> bool:
        return len(self.bridge.settings.objectives) == 1


JOBS: Kinds = {SearchJob.kind: SearchJob.from_tree}
"""What a worker of a search reads."""
