"""The plainest job: an ordered list of runs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from umscale.accounting import cost, gathered_params
from umscale.design.study import Cell
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
        return [run_id for run_id in self.run_ids if statuses.get(run_id) not in FINAL]

    def work(self, store: Store, report: Reporter, device_name: str) -> None:
        """Train every run that is neither finished nor claimed by another worker."""
        statuses, listed = store.statuses(), time.monotonic()
        for run, run_id in zip(self.runs, self.run_ids, strict=True):
            if report.stopping:
                return
            if statuses.get(run_id) in FINAL:
                continue
            free = False
            with store.claim(run_id) as mine:
                if mine and store.status(run_id) not in FINAL:
                    free = True
                    self.train(store, run, report, device_name)
            if not free and time.monotonic() - listed > LIST_SECONDS:
                statuses, listed = store.statuses(), time.monotonic()

    def train(self, store: Store, run: RunSpec, report: Reporter, device_name: str) -> None:
        """Train one run, which is claimed."""
        train_one(store, self.study, run, report, device_name)

    def give_up(self, store: Store, run_id: str, reason: str) -> None:
        """Record a run as failed, unless another worker has it."""
        run = self.runs[self.run_ids.index(run_id)]
        with store.claim(run_id) as mine:
            if mine:
                store.write_run(spec_row(run), self.study, status="failed", reason=reason)

    def to_tree(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {"study": self.study, "runs": [to_dict(run) for run in self.runs]}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Plan":
        """Read what ``to_tree`` gave."""
        return cls(study=str(tree["study"]), runs=tuple(from_dict(RunSpec, run) for run in tree["runs"]))


def make_plan(study: str, cells: Sequence[Cell]) -> Plan:
    """Order the distinct runs of a design: seed blocks in turn, in each the costliest first.

    Long runs first keep the workers evenly busy to the end; whole blocks first keep an interrupted study usable.
    """
    runs = {cell.run_id: cell.run for cell in cells if cell.run is not None}
    block = {seed: i for i, seed in enumerate(dict.fromkeys(cell.seed for cell in cells))}

    ordered = sorted(runs.values(), key=lambda run: (block[run.seed], -run_weight(run)))
    return Plan(study=study, runs=tuple(ordered))


def run_weight(run: RunSpec) -> float:
    """Return the relative cost of a run, for ordering and progress: FLOPs plus the tables' memory traffic.

    A gathered row costs about as much as 64 FLOPs a parameter and a pass of the optimiser as 200: both are
    bound by memory, not by arithmetic.
    """
    sizes = cost(run.model, run.data.seq_len)
    per_token = 3 * sizes.flops_per_token + 64 * gathered_params(run.model)
    return (per_token + 200 * sizes.sparse_params / run.tokens_per_step) * run.train.budgets[-1]


JOBS: Kinds = {Plan.kind: Plan.from_tree}
"""What a worker of a sweep reads."""
