"""A study's records put side by side: a row for each run and budget, its stages in columns."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

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


def _last(value: float) -> float:
    """Sort missing numbers last."""
    return math.inf if math.isnan(value) else value
