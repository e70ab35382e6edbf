"""The difference between two cells that the user names, paired within seed and budget."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.pairs import PairedContrast, run_noise
from umscale.laws.uncertainty import Estimate
from umscale.questions.density_over_size import paired_estimate
from umscale.results.table import CELL_COLUMNS, Rows, Table, first_level, numeric, select_rows, text, where
from umscale.say.blocks import Block, Verdict
from umscale.say.estimates import both
from umscale.say.labels import loss_name, when
from umscale.spec import quantity

_SAME = 0.01  # relative tolerance of a named value: the solver's


@dataclass(frozen=True, slots=True, kw_only=True)
class CellContrast:
    """Loss of one cell minus that of another."""

    left: Mapping[str, Any]
    right: Mapping[str, Any]
    stage: str | None
    compensation: str | None
    loss: str
    difference: Estimate
    """L(left) − L(right), nats per token, with a 95% interval; below zero, left is better."""
    n_pairs: int
    """Seed and budget pairs that hold both cells."""
    n_seeds: int
    basis: str
    """Where the interval comes from."""

    def blocks(self, asked: str) -> list[Block]:
        """One line, and what it rests on; ``asked`` is what the user wrote."""
        found = f"{asked}: {both(self.difference)} nats ({when(self.stage)}, {loss_name(self.loss)})"
        rests = f"{self.n_pairs} pairs of {self.n_seeds} seeds; {self.basis}."
        return [Verdict(verdict=found, tone="open", text=rests)]


def parse_contrast(given: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read ``top_m=16,n_keys=64 - top_m=32,n_keys=64``; numbers may be written ``4M``.

    Raises ``UserError`` for anything else.
    """
    sides = re.split(r"\s+-\s+", given.strip())
    if len(sides) != 2:
        raise UserError(f"contrast {given!r}: write it as 'top_m=16,n_keys=64 - top_m=32,n_keys=64'")
    return _parse_cell(sides[0], given), _parse_cell(sides[1], given)


def contrast(
    table: Table,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    *,
    stage: str | None = None,
    compensation: str | None = None,
    loss: str = "loss",
) -> CellContrast:
    """Compare the cells whose columns take the values of ``left`` and of ``right``.

    Differences are taken within seed and budget and averaged. From five shared seeds on, their spread gives the
    interval; with fewer, the run-to-run noise pooled over all cells of the table does (Student's t both times).

    Raises:
        UserError: an unknown column, no such cell, a description that fits several cells, or no shared seed.
    """
    part = where(table, stage=stage, compensation=compensation)
    rows = select_rows(part, [], loss=loss, extra=("D",))
    masks = [_cell_rows(part, rows, cell) for cell in (left, right)]
    same = masks[0] & masks[1]
    if same.any():
        raise UserError("both sides of the contrast are the same cell")
    budgets = rows.values.get("D", np.zeros(rows.size))
    weights, n_pairs = [], 0
    for seed in np.unique(rows.seed):
        pairs = []
        for budget in np.unique(budgets[rows.seed == seed]):
            here = (rows.seed == seed) & (budgets == budget)
            sides = [mask & here for mask in masks]
            if all(side.any() for side in sides):
                pairs.append(sides[0] / sides[0].sum() - sides[1] / sides[1].sum())
        if pairs:
            weights.append(np.mean(pairs, axis=0))
            n_pairs += len(pairs)
    if not weights:
        raise UserError(
            f"{_words(left)} and {_words(right)} share no seed and budget: nothing to pair them in"
        )
    by_block = np.array(weights) @ rows.loss
    per_run = np.bincount(rows.run, weights=np.mean(weights, axis=0))
    paired = PairedContrast(value=float(by_block.mean()), by_block=by_block, gain=float(per_run @ per_run))
    variance, freedom = run_noise(rows)
    estimate, source = paired_estimate(paired, variance, freedom)
    return CellContrast(
        left=dict(left),
        right=dict(right),
        stage=stage or first_level(part, "stage"),
        compensation=compensation or first_level(part, "compensation"),
        loss=loss,
        difference=estimate,
        n_pairs=n_pairs,
        n_seeds=len(weights),
        basis=f"differences within seed and budget; {source}",
    )


def _parse_cell(given: str, whole: str) -> dict[str, Any]:
    cell: dict[str, Any] = {}
    for part in given.split(","):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"contrast {whole!r}: {part.strip()!r} is not column=value")
        try:
            cell[name] = quantity(value)
        except UserError:
            cell[name] = value.strip("'\"")
    return cell


def _cell_rows(table: Table, rows: Rows, cell: Mapping[str, Any]) -> np.ndarray:
    """Which of ``rows`` belong to the one cell described, [rows]."""
    chosen = np.ones(rows.size, dtype=bool)
    for name, value in cell.items():
        if name not in table:
            raise UserError(f"the table has no column {name!r}{nearest(name, table)}")
        if isinstance(value, str):
            here = text(table, name)[rows.index] == value
        else:
            here = np.isclose(numeric(table, name)[rows.index], float(value), rtol=_SAME, atol=0.0)
        if not (chosen & here).any():
            present = sorted({str(v) for v in np.asarray(table[name])[rows.index[chosen]].tolist()})
            raise UserError(f"no finished run has {name} = {value}; there are {', '.join(present[:12])}")
        chosen &= here
    if len(np.unique(rows.cell[chosen])) > 1:
        open_axes = _differing(table, rows.index[chosen], [c for c in CELL_COLUMNS if c in table])
        raise UserError(f"{_words(cell)} fits several cells: say {' and '.join(open_axes)} too")
    return chosen


def _differing(table: Table, index: np.ndarray, names: Sequence[str]) -> list[str]:
    return [name for name in names if len(set(text(table, name)[index].tolist())) > 1]


def _words(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}" for k, v in cell.items())
