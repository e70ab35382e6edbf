"""The ordered list of runs that workers share, as a file in the store."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from umscale.accounting import cost, gathered_params
from umscale.design.study import Cell
from umscale.errors import UserError
from umscale.files import write_text
from umscale.spec import RunSpec, from_dict, to_dict
from umscale.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Runs to train, in order, with the study they belong to."""

    study: str
    runs: tuple[RunSpec, ...]


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


def write_plan(store: Store, plan: Plan) -> Path:
    """Write the plan into the store's work folder and return its path."""
    text = json.dumps({"study": plan.study, "runs": [to_dict(run) for run in plan.runs]})
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = store.root / "work" / "plans" / f"{name}.json"
    write_text(path, text)
    return path


def read_plan(path: Path) -> Plan:
    """Read what ``write_plan`` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Plan(study=str(tree["study"]), runs=tuple(from_dict(RunSpec, run) for run in tree["runs"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no readable plan ({error}); run the sweep again") from None
