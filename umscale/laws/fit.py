"""One law fitted to one table: choose rows, solve, and say how far the answer can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from umscale.errors import UserError
from umscale.laws import engine
from umscale.laws.forms import (
    COLUMNS,
    Array,
    Law,
    LocalLaw,
    PowerLaw,
    Residual,
    evaluate,
    from_theta,
    law_named,
    local_features,
    without_axes,
)
from umscale.laws.pairs import run_noise, run_variance
from umscale.laws.table import Rows, Table, levels, select_rows, where

Objective = Literal["huber", "least_squares", "least_absolute"]

HUBER_DELTA = 1e-3
"""The field's default threshold, on log residuals."""

_ONE_LEVEL = 1e-6  # axes whose extremes differ by less than this ratio have one level
_SINGULAR = 1e-6  # singular values below this share of the largest are zero: columns vary together
_SAME_OPTIMUM = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A fitted law with its record; full precision, rounding is for display."""

    law: Law
    """As fitted: axes with one level have dropped out."""
    coefficients: Mapping[str, float]
    objective: float
    """Least squares: ½Σr²; Huber: Σh_δ(r); over rows, never a mean."""
    objective_name: Objective
    delta: float
    """Huber threshold in the unit of the residuals; infinity for least squares."""
    residual: Residual
    """``log``: ln L; ``raw``: nats."""
    rmse_nats: float
    rmse_percent: float
    r_squared: float
    """Share of the loss variance explained, about seed-block means where blocks have intercepts."""
    condition_number: float
    """Of the design or the Jacobian at the optimum, columns scaled to unit length."""
    rank: int
    """Coefficients the rows determine (block intercepts not counted)."""
    unidentified: tuple[str, ...]
    """Coefficients the rows do not determine; their values are a minimum-norm choice."""
    starts_at_optimum: float | None
    """Share of refined starts that reached the best objective; None for linear laws."""
    n_starts: int
    newton_decrement: float
    """Predicted further decrease of the objective; 0 for linear laws."""
    reference: Mapping[str, float]
    """Symbol → geometric mean over the rows; the origin of a local law."""
    domain: Mapping[str, tuple[float, float]]
    """Symbol → lowest and highest value among the rows."""
    columns: Mapping[str, str]
    """Symbol → column it was read from."""
    dropped: tuple[str, ...]
    """Coefficients of the named law that the rows cannot hold."""
    loss: str
    stage: str | None
    compensation: str | None
    warnings: tuple[str, ...]
    rows: Rows = field(repr=False, compare=False)
    residuals: Array = field(repr=False, compare=False)
    """Observed minus fitted in residual space [rows], block intercepts taken out."""
    blocks: Array = field(repr=False, compare=False)
    """Design of the intercepts of seed blocks and architectures fitted beside the law [rows, blocks]."""

    @property
    def n_rows(self) -> int:
        return self.rows.size

    @property
    def vector(self) -> Array:
        """Coefficients as an array in the law's order."""
        return np.array([self.coefficients[name] for name in self.law.coefficients])

    def predict(self, values: Mapping[str, Array]) -> Array:
        """Loss in nats at ``values`` (symbol → array, at least one), block intercepts at their mean."""
        return evaluate(self.law, self.vector, values, self.reference)


def fit_law(
    table: Table,
    law: str | Law,
    *,
    stage: str | None = None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    objective: Objective | None = None,
    delta: float | None = None,
    residual: Residual | None = None,
    drop_invalid: bool = True,
) -> FitResult:
    """Fit ``law`` (a name of ``forms.LAWS`` or a law) to one stage and compensation of a table.

    ``columns`` maps the law's symbols to columns; ``delta`` is Huber's threshold. Power laws default to
    Huber(1e-3) on ln L, local laws to least squares in nats. Raises ``UserError`` for missing columns, mixed
    stages, values without a logarithm, or fewer rows than coefficients.
    """
    law = law_named(law) if isinstance(law, str) else law
    part = where(table, stage=stage, compensation=compensation)
    rows = select_rows(part, [law], loss=loss, columns=columns, drop_invalid=drop_invalid)
    used_stage = stage or next(iter(levels(part, "stage")), None)
    used_compensation = compensation or next(iter(levels(part, "compensation")), None)
    return fit_rows(
        rows,
        law,
        columns={**COLUMNS, **(columns or {})},
        loss=loss,
        stage=used_stage,
        compensation=used_compensation,
        objective=objective,
        delta=delta,
        residual=residual,
    )


def fit_rows(
    rows: Rows,
    law: Law,
    *,
    columns: Mapping[str, str] = COLUMNS,
    loss: str = "loss",
    stage: str | None = None,
    compensation: str | None = None,
    objective: Objective | None = None,
    delta: float | None = None,
    residual: Residual | None = None,
) -> FitResult:
    """``fit_law`` on rows already chosen."""
    asked = law
    constant = [s for s in law.symbols if np.ptp(np.log(rows.values[s])) < _ONE_LEVEL]
    law, dropped = without_axes(law, constant)
    warnings = list(rows.notes)
    for symbol in constant:
        warnings.append(f"every row has {columns[symbol]} {rows.values[symbol][0]:g}: it is not in the law")
    if rows.size < len(law.coefficients):
        raise UserError(
            f"{rows.size} rows cannot determine the {len(law.coefficients)} coefficients of law {asked.name!r}"
        )
    residual = residual or law.residual
    objective = objective or ("huber" if isinstance(law, PowerLaw) else "least_squares")
    if isinstance(law, LocalLaw) and (residual, objective) != ("raw", "least_squares"):
        raise UserError(f"law {law.name!r} is linear in the loss: fit it by least squares on raw residuals")
    delta = _threshold(objective, delta)
    reference = {s: float(np.exp(np.log(rows.values[s]).mean())) for s in rows.values}

    if isinstance(law, LocalLaw):
        features = local_features(law, rows.values, reference)
        blocks = _block_intercepts(rows, features)
        solved = _solve_local(rows, law, features, blocks)
    else:
        blocks = np.zeros((rows.size, 0))
        solved = _solve_power(rows, law, residual, objective, delta)
    warnings += solved.warnings

    error = solved.fitted - rows.loss
    centred = rows.loss - _block_means(rows.loss, blocks)
    total = float(centred @ centred)
    return FitResult(
        law=law,
        coefficients=dict(zip(law.coefficients, solved.coefficients.tolist(), strict=True)),
        objective=solved.objective,
        objective_name=objective,
        delta=delta,
        residual=residual,
        rmse_nats=float(np.sqrt(np.mean(error**2))),
        rmse_percent=float(100 * np.sqrt(np.mean((error / rows.loss) ** 2))),
        r_squared=1.0 - float(error @ error) / total if total > 0 else float("nan"),
        condition_number=solved.condition_number,
        rank=solved.rank,
        unidentified=solved.unidentified,
        starts_at_optimum=solved.starts_at_optimum,
        n_starts=solved.n_starts,
        newton_decrement=solved.decrement,
        reference=reference,
        domain={s: (float(v.min()), float(v.max())) for s, v in rows.values.items()},
        columns={s: columns[s] for s in rows.values},
        dropped=dropped,
        loss=loss,
        stage=stage,
        compensation=compensation,
        warnings=tuple(warnings),
        rows=rows,
        residuals=np.log(rows.loss / solved.fitted) if residual == "log" else -error,
        blocks=blocks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    coefficients: Array
    fitted: Array  # nats, [rows], block intercepts included
    objective: float
    condition_number: float
    rank: int
    unidentified: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    starts_at_optimum: float | None = None
    n_starts: int = 1
    decrement: float = 0.0


def _threshold(objective: Objective, delta: float | None) -> float:
    if objective == "least_squares":
        return float("inf")
    if objective == "least_absolute":
        return 1e-6
    if delta is not None and not delta > 0:
        raise UserError(f"Huber's delta must be positive, got {delta:g}")
    return HUBER_DELTA if delta is None else delta


def _solve_power(
    rows: Rows, law: PowerLaw, residual: Residual, objective: Objective, delta: float
) -> _Solved:
    continuation = [HUBER_DELTA * 10.0**-k for k in range(4)] if objective == "least_absolute" else [delta]
    problem = engine.make_problem(law, rows.values, residual=residual, delta=continuation[0])
    solution = engine.search(law, problem, rows.loss)
    for smaller in continuation[1:]:
        # Cold starts at a tiny δ land in wrong basins; the previous optimum does not.
        problem = engine.make_problem(law, rows.values, residual=residual, delta=smaller)
        solution = engine.minimise(problem, solution.theta, rows.loss)
    best = int(solution.objective.argmin())
    prediction, derivative = engine.jacobian(problem, solution.theta[best])
    rank, condition, loose, warnings = _identify(derivative @ problem.centring, law)
    gap = solution.objective - solution.objective[best]
    least = float(solution.objective[best])
    share = float(np.mean(gap <= _SAME_OPTIMUM * max(least, 1e-12)))
    if solution.decrement[best] > 1e-6 * max(least, 1e-12):
        warnings = (
            *warnings,
            "the optimiser stopped before the objective was flat: the optimum is not exact",
        )
    return _Solved(
        coefficients=from_theta(law, problem.restored(solution.theta[best])),
        fitted=np.exp(prediction) if residual == "log" else prediction,
        objective=least,
        condition_number=condition,
        rank=rank,
        unidentified=loose,
        warnings=warnings,
        starts_at_optimum=share,
        n_starts=len(solution.objective),
        decrement=float(solution.decrement[best]),
    )


def _solve_local(rows: Rows, law: LocalLaw, features: Array, blocks: Array) -> _Solved:
    design = np.hstack([features, blocks])
    solution = np.linalg.lstsq(design, rows.loss, rcond=_SINGULAR)[0].astype(np.float64)
    fitted = design @ solution
    within = features
    if blocks.shape[1]:
        within = features - blocks @ np.linalg.lstsq(blocks, features, rcond=_SINGULAR)[0]
    rank, condition, loose, warnings = _identify(within, law)
    between = rank + blocks.shape[1] - ("d" in law.coefficients and "d" not in loose)
    return _Solved(
        coefficients=solution[: len(law.coefficients)],
        fitted=fitted,
        objective=0.5 * float((rows.loss - fitted) @ (rows.loss - fitted)),
        condition_number=condition,
        rank=rank,
        unidentified=loose,
        warnings=(*warnings, *_lack_of_fit(rows, rows.loss - fitted, between)),
    )


def _lack_of_fit(rows: Rows, residuals: Array, between: int) -> tuple[str, ...]:
    """A warning when cells lie further from the law than runs of a cell lie from each other (F test, 1%)."""
    noise, freedom = run_noise(rows)
    spare = len(np.unique(rows.run)) - between - freedom
    if freedom < 1 or spare < 1 or noise <= 0:
        return ()
    from scipy.special import fdtrc

    left = len(np.unique(rows.run)) - between
    missed = (run_variance(rows, residuals, left) * left - noise * freedom) / spare
    if missed <= 0 or fdtrc(spare, freedom, missed / noise) > 0.01:
        return ()
    return (
        f"the law misses cells by more than their runs differ (F = {missed / noise:.1f}): "
        "its form is too simple for these rows",
    )


def _block_intercepts(rows: Rows, features: Array) -> Array:
    """Effect-coded intercepts [rows, blocks] of seed blocks and architectures; no column when not estimable.

    Seed blocks share data order and initial weights, hence a common offset, which within-block differences
    do not contain. Blocks are left out when they are confounded with the law's axes or would use up the runs.
    """
    parts = [c for c in (_effects(rows.setting), _effects(rows.seed)) if c.shape[1]]
    if not parts:
        return np.zeros((rows.size, 0))
    chosen = np.zeros((rows.size, 0))
    n_runs = len(np.unique(rows.run))
    for part in parts:
        trial = np.hstack([chosen, part])
        together = np.hstack([features, trial])
        separable = np.linalg.matrix_rank(together) == np.linalg.matrix_rank(features) + trial.shape[1]
        if separable and n_runs - together.shape[1] >= 2:
            chosen = trial
    return chosen


def _effects(codes: np.ndarray) -> Array:
    """Columns that are 1 in their level, −1 in the last level, 0 elsewhere, so that the intercept is the mean."""
    present = np.unique(codes)
    last = (codes == present[-1])[:, None].astype(np.float64)
    return np.asarray((codes[:, None] == present[:-1]).astype(np.float64) - last)


def _block_means(loss: Array, blocks: Array) -> Array:
    with_mean = np.hstack([np.ones((len(loss), 1)), blocks])
    return np.asarray(with_mean @ np.linalg.lstsq(with_mean, loss, rcond=_SINGULAR)[0])


def _identify(design: Array, law: Law) -> tuple[int, float, tuple[str, ...], tuple[str, ...]]:
    """Rank, condition number, undetermined coefficients and the sentences that say so."""
    length = np.linalg.norm(design, axis=0)
    names = law.coefficients
    _, singular, axes = np.linalg.svd(design / np.where(length > 0, length, 1.0), full_matrices=False)
    kept = singular > _SINGULAR * singular[0]
    rank = int(kept.sum())
    condition = float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")
    null = np.abs(axes[~kept])
    loose = tuple(n for n, share in zip(names, null.max(axis=0, initial=0.0), strict=True) if share > 0.05)
    sentences = []
    for direction in null:
        tangled = [n for n, share in zip(names, direction, strict=True) if share > 0.05]
        verb = "is not determined" if len(tangled) == 1 else "cannot be separated"
        sentences.append(f"{', '.join(tangled)} {verb}: on these rows their effects vary together")
    weak = 1e4 if isinstance(law, PowerLaw) else 30.0
    if not sentences and condition > weak:
        direction = np.abs(axes[-1])
        tangled = [n for n, share in zip(names, direction, strict=True) if share > 0.3]
        sentences.append(f"{', '.join(tangled)} are hardly separated (condition number {condition:.3g})")
    return rank, condition, loose, tuple(sentences)
