"""A study's records put side by side: a row for each run and budget, its stages in columns."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from umscale.store.store import MEASURED

_ORDER = ("seed", "sparse_params", "top_m", "lr", "value_lr", "budget")


def budget_rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row per run, compensation and budget, in the order of the design.

    Args:
        columns: ``Store.columns()``, of any status.

    Returns:
        The first record's columns, and beside them ``loss_STAGE`` and ``ema_STAGE`` for each stage recorded.
    """
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    for i in range(len(columns["run_id"])):
        record = {name: column[i] for name, column in columns.items()}
        key = (record["run_id"], record["compensation"] or "", record["budget"])
        row = rows.setdefault(key, record)
        row[f"loss_{record['stage']}"] = record["loss"]
        row[f"ema_{record['stage']}"] = record["loss_ema"]
    return sorted(
        rows.values(), key=lambda r: [r["compensation"] or "", *(_last(r[name]) for name in _ORDER)]
    )


def differently_made(columns: Mapping[str, np.ndarray]) -> str:
    """Say that runs were computed by different kernels or devices, where they were; else empty.

    Args:
        columns: ``Store.columns()``, of any status, or any table; one that does not say how its runs came about is
            silent.
    """
    if not {"run_id", "device", "kernels"} <= columns.keys():
        return ""
    status = columns.get("status", np.full(len(columns["run_id"]), "finished"))
    runs: dict[str, set[str]] = {}
    for run_id, ended, *made in zip(
        columns["run_id"], status, columns["device"], columns["kernels"], strict=True
    ):
        if ended in MEASURED and all(isinstance(word, str) and word for word in made):
            runs.setdefault(f"{made[1]} on {made[0]}", set()).add(run_id)
    if len(runs) < 2:
        return ""
    listed = ", ".join(f"{len(ids)} by {name}" for name, ids in sorted(runs.items()))
    return f"runs were computed by different kernels ({listed}), which changes losses as another seed does"


def paused(columns: Mapping[str, np.ndarray]) -> str:
    """Say which runs were told to stop before their end, and where; empty where none was.

    Args:
        columns: ``Store.columns()``.
    """
    if "status" not in columns:
        return ""
    each = zip(*(columns[name] for name in ("run_id", "status", "reason")), strict=True)
    where = {run_id: reason for run_id, status, reason in each if status == "paused"}
    counts = Counter(where.values()).items()
    return "; ".join(f"{n} {'run is' if n == 1 else 'runs are'} paused, {reason}" for reason, n in counts)


def _last(value: float) -> float:
    """Sort missing numbers last."""
    return math.inf if math.isnan(value) else value
