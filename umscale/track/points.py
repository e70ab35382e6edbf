"""What a store holds of its runs, as points of a tracker: a tag, a step in tokens, a value."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from umscale.store.store import Store
from umscale.trees import parse_json

MEASURES = ("loss", "loss_ema", "bits_per_byte", "bits_per_byte_ema", "tokens_per_second")
"""Columns of a record that are tracked."""
CURVES = ("loss", "lr", "value_lr")
"""Columns of a training curve that are tracked."""
TRUNK = "trunk"

Point = tuple[str, int, float]
"""Tag, step in tokens, value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run with its points, in rising order of steps."""

    run_id: str
    label: str
    config: dict[str, Any]
    """The run's specification."""
    points: list[Point] = field(default_factory=list)


def tracked_runs(store: Store) -> Iterator[TrackedRun]:
    """Yield every run of a store with its training curves and records.

    Tags: ``train/loss``, ``train/lr``, ``train/value_lr`` along the trunk, ``PHASE/loss`` along a decaying branch, and
    of every record ``STAGE/loss`` and others of ``MEASURES`` at the tokens of its budget.
    """
    records, curves = store.columns(None), store.curves()
    labels = _first(records, "label") | _first(curves, "label")
    specs = _first(records, "spec")
    points: dict[str, list[Point]] = {run_id: [] for run_id in labels}
    for names, prefix, step in ((MEASURES, "stage", "budget"), (CURVES, "phase", "tokens")):
        table = records if prefix == "stage" else curves
        for i, run_id in enumerate(table["run_id"]):
            at = table[step][i]
            where = table[prefix][i]
            if at is None or where is None or not np.isfinite(at):
                continue
            group = "train" if where == TRUNK else str(where)
            for name in names:
                value = table[name][i] if name in table else None
                if value is not None and np.isfinite(value):
                    points[run_id].append((f"{group}/{name}", int(at), float(value)))
    for run_id in sorted(points):
        tree = specs.get(run_id)
        yield TrackedRun(
            run_id=run_id,
            label=str(labels[run_id] or run_id),
            config=parse_json(tree) if isinstance(tree, str) and tree else {},
            points=sorted(points[run_id], key=lambda point: (point[1], point[0])),
        )


def _first(table: Any, name: str) -> dict[str, Any]:
    """Run → its first value in a column that is not missing."""
    found: dict[str, Any] = {}
    for run_id, value in zip(table["run_id"], table.get(name, ()), strict=False):
        if found.get(run_id) is None:
            found[run_id] = value
    return found
