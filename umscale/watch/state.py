"""What a store holds at this moment, as plain data for a page: cells, curves, claims, failures, the verdict so far."""

import time
from collections import Counter
from typing import Any

import numpy as np

from umscale.errors import UserError
from umscale.questions.question import Asked, find
from umscale.render.terminal import to_text
from umscale.results.budgets import budget_rows
from umscale.store.leases import Claim
from umscale.store.store import MEASURED, Store

MOST_CELLS = 1000
MOST_CURVES = 60
"""Runs whose curves are shown: those in work first, then those of least loss."""
CURVE_POINTS = 120
WIDTHS = {"wide": 88, "narrow": 42}
"""Columns of the verdict's words, on a desk and on a phone."""


class State:
    """Reads a store again and again; what takes long is done anew only when runs have been added.

    Args:
        store: any; nothing is written to it but what every reader keeps to read faster.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._verdict: tuple[tuple[int, ...], dict[str, str]] = ((), {})

    def read(self) -> dict[str, Any]:
        """Return the state; numbers that are missing are None."""
        store = self.store
        columns = store.columns(None)
        rows = budget_rows(columns)
        damaged = list(store.damaged)
        labels = {row["run_id"]: row["label"] or row["run_id"] for row in rows}
        statuses = store.statuses()
        claims = store.claimed()
        known = {c["run_id"]: c["label"] for c in store.read("cells").to_pylist()}
        waiting = [run_id for run_id in known if run_id not in statuses]
        counts = Counter(statuses.values())
        counts["waiting"] = sum(run_id not in claims for run_id in waiting)
        return {
            "store": store.name,
            "question": store.question(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "counts": {status: n for status, n in counts.items() if n},
            "cells": [_cell(row) for row in rows[:MOST_CELLS]],
            "cells_left_out": max(0, len(rows) - MOST_CELLS),
            "claims": [_claim(claims[r], labels.get(r) or known.get(r)) for r in sorted(claims)],
            "failures": [
                {name: row[name] or "" for name in ("run_id", "status", "reason")} | {"label": labels[row["run_id"]]}
                for row in {row["run_id"]: row for row in rows}.values()
                if row["status"] in ("failed", "diverged", "infeasible")
            ],
            "curves": self._curves(rows, set(claims), labels | known),
            "verdict": self._answer(columns),
            "damaged": damaged,
        }  # fmt: skip

    def _curves(
        self, rows: list[dict[str, Any]], busy: set[str], labels: dict[str, str]
    ) -> list[dict[str, Any]]:
        """Return the training curve of the runs that are shown, on their trunk."""
        table = self.store.read("curves")
        best: dict[str, float] = {}
        for row in rows:
            loss = _number(row.get("loss_annealed"))
            if loss is not None:
                best[row["run_id"]] = min(loss, best.get(row["run_id"], loss))
        points: dict[str, list[tuple[int, float]]] = {}
        for run_id, phase, tokens, loss in zip(
            *(table[name].to_pylist() for name in ("run_id", "phase", "tokens", "loss")), strict=True
        ):
            if phase == "trunk" and loss is not None and np.isfinite(loss):
                points.setdefault(run_id, []).append((tokens, loss))
        order = sorted(points, key=lambda run_id: (run_id not in busy, best.get(run_id, np.inf)))
        chosen = []
        for run_id in order[:MOST_CURVES]:
            some = sorted(points[run_id])
            step = -(-len(some) // CURVE_POINTS)
            chosen.append(
                {"run_id": run_id, "label": labels.get(run_id) or run_id, "busy": run_id in busy,
                 "points": some[::step]}
            )  # fmt: skip
        return chosen

    def _answer(self, columns: dict[str, np.ndarray]) -> dict[str, str]:
        """Return the answer to the study's question in words by ``WIDTHS``, or why there is none yet."""
        measured = np.isin(columns["status"], MEASURED)
        key = (int(measured.sum()), len(measured))
        if key != self._verdict[0]:
            try:
                asked = Asked(losses=("loss",), read=self.store.read)
                answer = find(self.store.question()).answer(self.store.columns(), asked)
                words = {name: to_text(answer.blocks(), width) for name, width in WIDTHS.items()}
            except UserError as error:
                words = dict.fromkeys(WIDTHS, f"No answer yet: {error}")
            self._verdict = (key, words)
        return self._verdict[1]


def _claim(claim: Claim, label: str | None) -> dict[str, Any]:
    return {
        "run_id": claim.name,
        "label": label or claim.name,
        "holder": f"{claim.host}, process {claim.pid}",
    }


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": row["run_id"],
        "label": row["label"] or row["run_id"],
        "budget": _number(row["budget"]),
        "stable": _number(row.get("loss_stable")),
        "annealed": _number(row.get("loss_annealed")),
        "status": row["status"],
    }


def _number(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
