"""The plainest job: an ordered list of runs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from umscale.accounting import cost, gathered_params
from umscale.design.study import Cell
from umscale.errors import UserError
from umscale.execute.claimed_run import Reporter, train_one
from umscale.execute.job import Kinds
from umscale.spec import RunSpec, from_dict, to_dict
from umscale.store.store import FINAL, Store
from umscale.training.record import spec_row

LIST_SECONDS = 1.0
"""A worker that finds its runs done by others looks at all statuses again, but not more often than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Runs to train, in order, with the study they belong to."""

    kind: ClassVar[str] = "plan"

    study: str
    runs: tuple[RunSpec, ...]
    until: int | None = None
    """Tokens after whose budget every run is paused, for a later plan to go on with; None: runs go to their end."""
    run_ids: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Computed once: a hash of each run's specification."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_ids", tuple(run.run_id for run in self.runs))

    def remaining(self, store: Store) -> int:
        """Runs that are not over."""
        return len(self.unfinished(store))

    def unfinished(self, store: Store) -> list[str]:
        """Ids of the runs that are not over."""
        statuses = store.statuses()
        return [
            run_id
            for run, run_id in zip(self.runs, self.run_ids, strict=True)
            if not self.is_over(store, run, run_id, statuses.get(run_id))
        ]

    def is_over(self, store: Store, run: RunSpec, run_id: str, status: str | None) -> bool:
        """Whether nothing is left to do of a run that has ``status``."""
        if status != "paused":
            return status in FINAL
        done, wanted = (run.budgets_until(t) for t in (store.tokens_reached(run_id), self.until))
        return done >= wanted

    def work(self, store: Store, report: Reporter, device_name: str) -> None:
        """Train every run that is neither finished nor claimed by another worker."""
        statuses, listed = store.statuses(), time.monotonic()
        for run, run_id in zip(self.runs, self.run_ids, strict=True):
            if report.stopping:
                return
            if self.is_over(store, run, run_id, statuses.get(run_id)):
                continue
            free = False
            with store.claim(run_id) as mine:
                if mine and not self.is_over(store, run, run_id, store.status(run_id)):
                    free = True
                    self.train(store, run, report, device_name)
            if not free and time.monotonic() - listed > LIST_SECONDS:
                statuses, listed = store.statuses(), time.monotonic()

    def train(self, store: Store, run: RunSpec, report: Reporter, device_name: str) -> None:
        """Train one run, which is claimed."""
        train_one(store, self.study, run, report, device_name, until=self.until)

    def give_up(self, store: Store, run_id: str, reason: str) -> None:
        """Record a run as failed, unless another worker has it."""
        run = self.runs[self.run_ids.index(run_id)]
        with store.claim(run_id) as mine:
            if mine:
                store.fail_run(spec_row(run), self.study, reason)

    def to_tree(self) -> dict[str, Any]:
        """The plan as JSON."""
        tree = {"study": self.study, "runs": [to_dict(run) for run in self.runs]}
        return tree if self.until is None else tree | {"until": self.until}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Plan":
        """Read what ``to_tree`` gave."""
        until = tree.get("until")
        runs = tuple(from_dict(RunSpec, run) for run in tree["runs"])
        return cls(study=str(tree["study"]), runs=runs, until=None if until is None else int(until))


def make_plan(study: str, cells: Sequence[Cell], until: int | None = None) -> Plan:
    """Order the distinct runs of a design: seed blocks in turn, in each the costliest first.

    Long runs first keep the workers evenly busy to the end; whole blocks first keep an interrupted study usable.

    Args:
        until: tokens after whose budget every run is paused.

    Raises:
        UserError: a run has no budget so small.
    """
    runs = {cell.run_id: cell.run for cell in cells if cell.run is not None}
    first = max((run.train.budgets[0] for run in runs.values()), default=0)
    if until is not None and until < first:
        raise UserError(
            f"--until {until:,}: the first budget is {first:,} tokens, and nothing is measured before it"
        )
    block = {seed: i for i, seed in enumerate(dict.fromkeys(cell.seed for cell in cells))}

    ordered = sorted(runs.values(), key=lambda run: (block[run.seed], -run_weight(run)))
    return Plan(study=study, runs=tuple(ordered), until=until)


def run_weight(run: RunSpec, until: int | None = None) -> float:
    """Return the relative cost of a run, for ordering and progress: FLOPs plus the tables' memory traffic.

    A gathered row costs about as much as 64 FLOPs a parameter and a pass of the optimiser as 200: both are
    bound by memory, not by arithmetic.
    """
    sizes = cost(run.model, run.data.seq_len)
    per_token = 3 * sizes.flops_per_token + 64 * gathered_params(run.model)
    budget = run.train.budgets[run.budgets_until(until) - 1]
    return (per_token + 200 * sizes.sparse_params / run.tokens_per_step) * budget


JOBS: Kinds = {Plan.kind: Plan.from_tree}
"""What a worker of a sweep reads."""
