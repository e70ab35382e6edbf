"""What a search found: its best trials, which parameters mattered, and a study that trains the winners again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umscale.search.bridge import Bridge, quiet
from umscale.spec import to_toml

if TYPE_CHECKING:
    import optuna

_FEW = 8  # complete trials below which importances say nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial, or one finished run that was taken from the store."""

    number: int
    state: str
    """complete, pruned, over budget, infeasible, diverged, failed or running."""
    reason: str
    params: Mapping[str, Any]
    values: tuple[float, ...] | None
    run_id: str | None
    label: str
    same_as: int | None
    """The earlier trial whose model it asked for again, so that nothing was trained."""
    best: bool
    """On the Pareto front of feasible trials; with one objective, the least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A search so far."""

    objectives: tuple[str, ...]
    trials: tuple[TrialRow, ...]
    importances: Mapping[str, Mapping[str, float]]
    """Objective → parameter → share of PED-ANOVA's importance; empty with few trials."""
    why_no_importances: str

    @property
    def best(self) -> tuple[TrialRow, ...]:
        """The front, by the first objective; runs met more than once are listed once."""
        front = {row.run_id: row for row in self.trials if row.best}
        return tuple(sorted(front.values(), key=lambda row: row.values or ()))

    @property
    def repeated(self) -> int:
        """Trials that asked for a model that an earlier one had."""
        return sum(row.same_as is not None for row in self.trials)

    def count(self, state: str) -> int:
        """Trials in a state."""
        return sum(row.state == state for row in self.trials)


def summarise(bridge: Bridge, study: "optuna.Study") -> Found:
    """Read a search out of its storage."""
    from optuna.trial import TrialState

    from umscale.search.job import SAME_AS, VOID

    trials = [
        t
        for t in study.get_trials(deepcopy=False)
        if VOID not in t.user_attrs and t.state != TrialState.WAITING
    ]
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    front = {t.number for t in study.best_trials} if len(bridge.settings.objectives) > 1 else set[int]()
    if complete and not front:
        front = {min(complete, key=lambda t: float(t.values[0])).number}
    rows = tuple(
        TrialRow(
            number=t.number,
            state=_state(t),
            reason=t.user_attrs.get("reason", ""),
            params=dict(t.params),
            values=tuple(t.values) if t.state == TrialState.COMPLETE else None,
            run_id=t.user_attrs.get("run_id"),
            label=t.user_attrs.get("label", ""),
            same_as=t.user_attrs.get(SAME_AS),
            best=t.number in front,
        )
        for t in trials
    )
    importances, why = _importances(bridge, study, len(complete))
    return Found(
        objectives=bridge.settings.objectives, trials=rows, importances=importances, why_no_importances=why
    )


def winners_study(bridge: Bridge, found: Found, n_seeds: int) -> str:
    """A study file that trains the best trials with ``n_seeds`` seeds."""
    tree = bridge.study.to_dict()
    tree.pop("search", None)
    tree["name"] = f"{bridge.study.name}-winners"
    tree["description"] = f"The best trials of the search {bridge.study.name}, each with {n_seeds} seeds."
    tree["axes"] = {k: v for k, v in tree["axes"].items() if k != "seed"} | {"seed": list(range(n_seeds))}
    tree["cells"] = [dict(row.params) for row in found.best]
    return to_toml(tree)


def _state(trial: "optuna.trial.FrozenTrial") -> str:
    reason = trial.user_attrs.get("reason", "")
    for state in ("over budget", "infeasible", "diverged"):
        if reason.startswith(state):
            return state
    return {"fail": "failed"}.get(trial.state.name.lower(), trial.state.name.lower())


def _importances(
    bridge: Bridge, study: "optuna.Study", n_complete: int
) -> tuple[dict[str, dict[str, float]], str]:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(bridge.settings.space) < 2:
        return {}, "one parameter alone was varied"
    if n_complete < _FEW:
        return {}, f"{n_complete} finished trials are too few; {_FEW} are the least"
    found: dict[str, dict[str, float]] = {}
    for i, name in enumerate(bridge.settings.objectives):
        try:
            with quiet():
                found[name] = dict(
                    get_param_importances(
                        study,
                        evaluator=PedAnovaImportanceEvaluator(),
                        target=lambda t, i=i: float(t.values[i]),  # type: ignore[misc]
                    )
                )
        except (RuntimeError, ValueError) as error:
            return {}, str(error).splitlines()[0]
    return found, ""
