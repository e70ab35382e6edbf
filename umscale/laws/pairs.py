"""Contrasts of measured cells, without a law: neighbours in the grid, compared within seed block and budget."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from umscale.results.columns import Array
from umscale.results.table import Codes, Rows

Cell = tuple[int, int]
"""Positions among the levels of (m, N_s)."""
Weights = dict[Cell, float]

_SAME_SIZE = float(np.log2(1.01))  # sizes within 1% are one level: the solver's tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Levels of both axes as base-2 logarithms, and which cells one seed block measured at one budget."""

    log_m: Array
    log_n: Array
    cells: Mapping[Cell, Codes]
    """Cell → rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedContrast:
    """A linear contrast of losses averaged over seed blocks."""

    value: float
    by_block: Array
    """[seed blocks]."""
    gain: float
    """Variance of ``value`` per unit variance of a run."""


Steps = Callable[[Grid], Iterator[Weights]]


def steps_in_m(grid: Grid) -> Iterator[Weights]:
    """[L(m, N) − L(m′, N)] per doubling, m′ the next level."""
    for i, j in grid.cells:
        if (i + 1, j) in grid.cells:
            octaves = grid.log_m[i + 1] - grid.log_m[i]
            yield {(i, j): 1 / octaves, (i + 1, j): -1 / octaves}


def steps_in_n(grid: Grid) -> Iterator[Weights]:
    """[L(m, N) − L(m, N′)] per doubling, N′ the next level."""
    for i, j in grid.cells:
        if (i, j + 1) in grid.cells:
            octaves = grid.log_n[j + 1] - grid.log_n[j]
            yield {(i, j): 1 / octaves, (i, j + 1): -1 / octaves}


def corners(grid: Grid) -> Iterator[Weights]:
    """Step in m minus step in N_s from one common cell; at single doublings, L(m, 2N) − L(2m, N)."""
    for i, j in grid.cells:
        if (i + 1, j) in grid.cells and (i, j + 1) in grid.cells:
            up_m = 1 / (grid.log_m[i + 1] - grid.log_m[i])
            up_n = 1 / (grid.log_n[j + 1] - grid.log_n[j])
            yield {(i, j): up_m - up_n, (i + 1, j): -up_m, (i, j + 1): up_n}


def paper_pairs(grid: Grid) -> Iterator[Weights]:
    """L(m, 2N) − L(3m, N) where the grid holds both cells."""
    for i, j in grid.cells:
        for k, l in grid.cells:
            tripled = abs(grid.log_m[k] - grid.log_m[i] - np.log2(3)) < _SAME_SIZE
            doubled = abs(grid.log_n[j] - grid.log_n[l] - 1) < _SAME_SIZE
            if tripled and doubled:
                yield {(i, j): 1.0, (k, l): -1.0}


def paired_contrast(rows: Rows, steps: Steps) -> PairedContrast | None:
    """Average of ``steps`` over the grid, budgets and seed blocks; None when the grid holds none."""
    log_m, m_level = _levels(rows.values["m"])
    log_n, n_level = _levels(rows.values["N_s"])
    weights = []  # of rows, one array a seed block
    for seed in np.unique(rows.seed):
        slices = []
        for budget, setting in np.unique(np.stack([rows.values["D"], rows.setting]), axis=1).T:
            inside = (rows.seed == seed) & (rows.values["D"] == budget) & (rows.setting == setting)
            present = {(int(m_level[r]), int(n_level[r])) for r in np.flatnonzero(inside)}
            members = {c: np.flatnonzero(inside & (m_level == c[0]) & (n_level == c[1])) for c in present}
            slices += _mean_weights(
                list(steps(Grid(log_m=log_m, log_n=log_n, cells=members))), members, rows.size
            )
        if slices:
            weights.append(np.mean(slices, axis=0))
    if not weights:
        return None
    by_block = np.array(weights) @ rows.loss
    per_run = np.bincount(rows.run, weights=np.mean(weights, axis=0))
    return PairedContrast(value=float(by_block.mean()), by_block=by_block, gain=float(per_run @ per_run))


def run_noise(rows: Rows) -> tuple[float, float]:
    """Variance of a run's loss beside its cell, seed block and budget, and its degrees of freedom.

    Zero degrees when no cell was run twice. Rows without tokens are taken to have one budget.
    """
    factors = [rows.cell, rows.seed]
    if "D" in rows.values:
        factors.append(np.unique(rows.values["D"], return_inverse=True)[1])
    design = np.hstack([codes[:, None] == np.unique(codes) for codes in factors]).astype(np.float64)
    residuals = rows.loss - design @ np.linalg.lstsq(design, rows.loss, rcond=1e-9)[0]
    between = np.hstack([codes[:, None] == np.unique(codes) for codes in factors[:2]])
    freedom = len(np.unique(rows.run)) - int(np.linalg.matrix_rank(between.astype(np.float64)))
    if freedom < 1:
        return float("nan"), 0.0
    return run_variance(rows, residuals, freedom), float(freedom)


def run_variance(rows: Rows, residuals: Array, freedom: float) -> float:
    """Σ over runs of the squared mean residual, per degree of freedom."""
    _, codes, sizes = np.unique(rows.run, return_inverse=True, return_counts=True)
    means = np.bincount(codes.reshape(-1), weights=residuals) / sizes
    return float(means @ means) / freedom


def _mean_weights(steps: list[Weights], members: Mapping[Cell, Codes], n_rows: int) -> list[Array]:
    """The average step as weights of rows [rows], a cell's rows sharing its weight; nothing without steps."""
    if not steps:
        return []
    weights = np.zeros(n_rows)
    for step in steps:
        for cell, weight in step.items():
            rows = members[cell]
            weights[rows] += weight / len(rows) / len(steps)
    return [weights]


def _levels(values: Array) -> tuple[Array, Codes]:
    """Distinct sizes as base-2 logarithms, ascending, and the level of each row."""
    logs = np.log2(values)
    order = np.argsort(logs)
    steps = np.diff(logs[order]) > _SAME_SIZE
    level = np.empty(len(logs), dtype=np.int64)
    level[order] = np.concatenate([[0], np.cumsum(steps)])
    return np.array([logs[level == k].mean() for k in range(level.max() + 1)]), level
