"""What a fit leaves behind: residuals along each axis and by run, rows that carry it, and what it does not determine.

Residuals are observed minus fitted losses in nats, block intercepts taken out. A slope along an axis is judged by
Student's t over groups of rows, since rows of one run err together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from umscale.laws.fit import FitResult
from umscale.laws.forms import ExpressionLaw
from umscale.laws.uncertainty import without_each
from umscale.results.columns import Array
from umscale.results.table import Codes

_BINS = 5  # of an axis with more levels than this
_WORST = 5  # runs and rows that are named
_MOST_ROWS = 2000  # refitted without one row each; of longer tables the rows with the largest residuals
_STEEP = 3.0  # Student's t from which a slope of the residuals is worth a sentence
_HEAVY = 1.0  # standard errors a single row may move a coefficient before it is worth a sentence
_FEW_STARTS = 0.5  # share of starts at the optimum below which the surface deserves a warning
_SAME = 1.01
_COLLINEAR = 1e-9  # 1 − |correlation| of two log columns that vary together
_SINGULAR = 1e6  # condition number beyond which the engine calls columns dependent


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Residuals of the rows in one stretch of an axis."""

    low: float
    high: float
    n_rows: int
    mean: float
    rms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisResiduals:
    """Residuals along one axis; a slope or a bend is what the law misses there."""

    symbol: str
    column: str
    bins: tuple[Bin, ...]
    slope: float
    """Nats per octave."""
    t: float
    """Slope over its standard error between groups; NaN with fewer than three groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResidual:
    """A run by its mean residual."""

    name: str
    n_rows: int
    mean: float
    deviations: float
    """In standard deviations of the runs' means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """What leaving one row out would do."""

    row: str
    coefficient: str
    """The one it moves furthest."""
    change: float
    """Of that coefficient, fitted without the row minus with it."""
    standard_errors: float
    """``change`` over the jackknife's standard error of the coefficient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """Everything about one fit that its coefficients do not show."""

    axes: tuple[AxisResiduals, ...]
    runs: tuple[RunResidual, ...]
    """Those furthest from the law."""
    influence: tuple[Influence, ...]
    """The rows that move a coefficient furthest."""
    starts_at_optimum: float | None
    n_starts: int
    newton_decrement: float
    condition_number: float
    unidentified: tuple[str, ...]
    statements: tuple[str, ...]
    """What of this deserves attention, in words."""


def diagnose(
    fit: FitResult, *, groups: Codes | None = None, names: Sequence[str] | None = None
) -> Diagnostics:
    """Examine a fit.

    Args:
        groups: code of each of the fit's rows, rows of one group err together; None takes runs.
        names: what to call each row, [rows]; None takes its number in the table, from 1.
    """
    residuals = residuals_in_nats(fit)
    codes = np.unique(fit.rows.run if groups is None else groups, return_inverse=True)[1].reshape(-1)
    called = [f"row {i + 1}" for i in fit.rows.index] if names is None else list(names)
    axes = tuple(
        _along(fit, symbol, residuals, codes)
        for symbol, values in fit.rows.values.items()
        if (values > 0).all() and values.max() > _SAME * values.min()
    )
    runs, influence = _by_run(residuals, codes, called), _influence(fit, called)
    return Diagnostics(
        axes=axes,
        runs=runs,
        influence=influence,
        starts_at_optimum=fit.starts_at_optimum,
        n_starts=fit.n_starts,
        newton_decrement=fit.newton_decrement,
        condition_number=fit.condition_number,
        unidentified=fit.unidentified,
        statements=tuple(_statements(fit, axes, runs, influence)),
    )


def residuals_in_nats(fit: FitResult) -> Array:
    """Observed minus fitted loss [rows], whatever space the law was fitted in."""
    if fit.residual == "raw":
        return fit.residuals
    return np.asarray(fit.rows.loss * -np.expm1(-fit.residuals))


def inseparable(fit: FitResult) -> str:
    """Which coefficients these rows cannot separate because columns vary together, or the empty string.

    Two axes that are powers of each other on every row are one axis: the terms of a sum of powers may then be
    exchanged, although the curvature at the optimum is regular.
    """
    if fit.unidentified and fit.condition_number > _SINGULAR:
        verb = "cannot be separated" if len(fit.unidentified) > 1 else "is not determined"
        return f"{', '.join(fit.unidentified)} {verb}: on these rows their effects vary together"
    if isinstance(fit.law, ExpressionLaw):
        return ""
    logs = {s: np.log(fit.rows.values[s]) for s in fit.law.symbols if np.ptp(fit.rows.values[s]) > 0}
    for i, one in enumerate(logs):
        for other in list(logs)[i + 1 :]:
            if 1 - abs(float(np.corrcoef(logs[one], logs[other])[0, 1])) < _COLLINEAR:
                columns = f"{fit.columns[one]} and {fit.columns[other]}"
                return f"{columns} vary together on every row: the effects of {one} and {other} cannot be separated"
    return ""


def _along(fit: FitResult, symbol: str, residuals: Array, groups: Codes) -> AxisResiduals:
    octaves = np.log2(fit.rows.values[symbol])
    order = np.sort(octaves)
    starts = np.concatenate([[order[0]], order[1:][np.diff(order) > np.log2(_SAME)]])
    if len(starts) > _BINS:
        starts = np.unique(np.quantile(octaves, np.arange(_BINS) / _BINS))
    level = np.searchsorted(starts, octaves, side="right") - 1
    bins = []
    for k in np.unique(level):
        inside, values = residuals[level == k], fit.rows.values[symbol][level == k]
        bins.append(
            Bin(
                low=float(values.min()),
                high=float(values.max()),
                n_rows=len(inside),
                mean=float(inside.mean()),
                rms=float(np.sqrt(np.mean(inside**2))),
            )
        )
    centred = octaves - octaves.mean()
    slope = float(centred @ residuals / (centred @ centred))
    scores = np.bincount(groups, weights=centred * (residuals - residuals.mean() - slope * centred))
    n = len(scores)
    error = float(np.sqrt(scores @ scores * n / (n - 1)) / (centred @ centred)) if n > 2 else float("nan")
    return AxisResiduals(
        symbol=symbol,
        column=fit.columns[symbol],
        bins=tuple(bins),
        slope=slope,
        t=slope / error if error > 0 else float("nan"),
    )


def _by_run(residuals: Array, groups: Codes, names: Sequence[str]) -> tuple[RunResidual, ...]:
    sizes = np.bincount(groups)
    means = np.bincount(groups, weights=residuals) / sizes
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    first = [int(np.flatnonzero(groups == g)[0]) for g in np.argsort(-np.abs(means), kind="stable")[:_WORST]]
    return tuple(
        RunResidual(
            name=names[i],
            n_rows=int(sizes[groups[i]]),
            mean=float(means[groups[i]]),
            deviations=float(means[groups[i]]) / spread if spread > 0 else float("nan"),
        )
        for i in first
    )


def _influence(fit: FitResult, names: Sequence[str]) -> tuple[Influence, ...]:
    if fit.n_rows <= fit.n_free + 1:
        return ()
    examined = np.sort(np.argsort(-np.abs(fit.residuals), kind="stable")[:_MOST_ROWS])
    codes = np.full(fit.n_rows, len(examined), dtype=np.int64)
    codes[examined] = np.arange(len(examined))
    left_out = without_each(fit, codes)[: len(examined)]
    share = (fit.n_rows - 1) / len(examined)
    error = np.sqrt(share * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    identified = np.array([name not in fit.unidentified for name in fit.law.coefficients])
    change = (left_out - fit.vector) * identified
    moved = np.divide(change, error, out=np.zeros_like(change), where=error > 0)
    furthest = np.abs(moved).argmax(axis=1)
    heaviest = np.argsort(-np.abs(moved).max(axis=1), kind="stable")[:_WORST]
    return tuple(
        Influence(
            row=names[examined[i]],
            coefficient=fit.law.coefficients[furthest[i]],
            change=float(change[i, furthest[i]]),
            standard_errors=float(moved[i, furthest[i]]),
        )
        for i in heaviest
    )


def _statements(
    fit: FitResult,
    axes: Sequence[AxisResiduals],
    runs: Sequence[RunResidual],
    influence: Sequence[Influence],
) -> list[str]:
    said = []
    for axis in axes:
        if abs(axis.t) > _STEEP:
            said.append(
                f"residuals change by {axis.slope:+.2g} per octave of {axis.column} (t = {axis.t:.1f}): "
                "the law misses part of its effect"
            )
    for run in runs:
        if abs(run.deviations) > _STEEP:
            said.append(f"{run.name} lies {run.mean:+.2g} off the law, {abs(run.deviations):.1f} deviations")
    for one in influence:
        if abs(one.standard_errors) > _HEAVY:
            said.append(
                f"without {one.row}, {one.coefficient} moves by {one.change:+.3g}, "
                f"{abs(one.standard_errors):.1f} standard errors"
            )
    if fit.starts_at_optimum is not None:
        verb = "reach" if fit.starts_at_optimum >= _FEW_STARTS else "only reach"
        said.append(f"{fit.starts_at_optimum:.0%} of {fit.n_starts} refined starts {verb} the optimum")
    said.append(f"condition number {fit.condition_number:.3g}")
    if fit.unidentified:
        said.append(f"not identified on these rows: {', '.join(fit.unidentified)}")
    return said
