"""One law fitted to one table: choose rows, solve, and say how far the answer can be trusted."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from umscale import formulas as tree
from umscale.errors import UserError, nearest
from umscale.laws import engine
from umscale.laws.constraints import Constraints, Reduced, check, needs_signs, reduce_law
from umscale.laws.forms import (
    ExpressionLaw,
    Law,
    LocalLaw,
    Objective,
    PowerLaw,
    Residual,
    as_written,
    evaluate,
    law_named,
    local_features,
    without_axes,
)
from umscale.laws.generic import ExpressionProblem, expression_problem
from umscale.laws.generic import search as generic_search
from umscale.laws.pairs import run_noise, run_variance
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Rows, Table, first_level, select_rows, where

HUBER_DELTA = 1e-3
"""The field's default threshold, on log residuals."""

_ONE_LEVEL = 1e-6  # axes whose extremes differ by less than this ratio have one level
_SINGULAR = 1e-6  # singular values below this share of the largest are zero: columns vary together
_SAME_OPTIMUM = 1e-9
_FLAT = 1e-6  # predicted decrease relative to the objective below which an optimum is exact
_ROUNDING = 1e-11  # singular values of an expression's Jacobian below this share are rounding errors
_SHARE = 0.05  # of a null direction that makes a coefficient part of it
_WIDE = 0.5  # relative spread of a coefficient over starts at the optimum that shows it open
_UNBOUNDED = 6  # optima without bounds that a bounded fit starts from as well
_VANISHED = 1e-7  # a term that is nowhere a greater share of the loss is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A fitted law with its record; full precision, rounding is for display."""

    law: Law
    """As fitted: axes with one level have dropped out."""
    coefficients: Mapping[str, float]
    constraints: Constraints
    n_free: int
    """Coefficients fitted: pinned ones are not counted, tied ones once."""
    objective: float
    """Least squares: ½Σr²; Huber: Σh_δ(r); over rows, never a mean."""
    objective_name: Objective
    delta: float
    """Huber threshold in the unit of the residuals; infinity for least squares."""
    residual: Residual
    """``log``: ln L; ``raw``: nats."""
    weights: Array | None = field(repr=False, compare=False)
    """Of the rows in the objective, mean 1, [rows]; None for equal ones."""
    above: float
    """Weight of rows above the law beside those below it; under 1 where undertuned runs count less."""
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
    is_exact: bool
    """Whether the optimiser arrived: the predicted decrease is nothing beside the objective."""
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
    pins: Mapping[str, float] | None = None,
    ties: Sequence[tuple[str, str]] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> FitResult:
    """Fit ``law`` (a name of ``forms.LAWS`` or a law) to one stage and compensation of a table.

    ``columns`` maps the law's symbols to columns; ``delta`` is Huber's threshold. Local laws default to least
    squares in nats, others to Huber(1e-3) on ln L unless their source says otherwise. ``pins`` fixes coefficients,
    ``ties`` gives pairs of them one value, ``bounds`` keeps them between two numbers. Raises ``UserError`` for
    missing or unused columns, mixed stages, values without a logarithm, impossible constraints, or fewer rows than
    free coefficients.
    """
    law = law_named(law) if isinstance(law, str) else law
    for symbol in columns or {}:
        if symbol not in law.symbols and symbol not in COLUMNS:
            raise UserError(f"law {law.name!r} does not read {symbol!r}{nearest(symbol, law.symbols)}")
    part = where(table, stage=stage, compensation=compensation)
    rows = select_rows(part, [law], loss=loss, columns=columns)
    used_stage = stage or first_level(part, "stage")
    used_compensation = compensation or first_level(part, "compensation")
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
        constraints=Constraints(pins=pins or {}, ties=tuple(ties), bounds=bounds or {}),
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
    constraints: Constraints | None = None,
    above: float = 1.0,
) -> FitResult:
    """``fit_law`` on rows already chosen; ``above`` is the weight of rows that lie above the law."""
    asked = law
    constraints = constraints or Constraints()
    check(law, constraints)
    law, dropped, left_out = _without_constants(rows, law, constraints, columns)
    n_free = _require_enough(rows, law, constraints, asked.name)
    residual, objective = residual or law.residual, objective or law.objective
    delta = _threshold(objective, delta)
    weights = row_weights(rows, residual)
    reference = {s: _middle(v) for s, v in rows.values.items()}
    task = _Task(rows, law, constraints, residual, objective, delta, weights, above)  # type: ignore[arg-type]  # local too
    law, solved, blocks = _solve_by_kind(task, reference)
    error = solved.fitted - rows.loss
    return FitResult(
        law=law,
        coefficients=dict(zip(law.coefficients, solved.coefficients.tolist(), strict=True)),
        constraints=constraints,
        n_free=n_free,
        objective=solved.objective,
        objective_name=objective,
        delta=delta,
        residual=residual,
        weights=weights,
        above=above,
        rmse_nats=float(np.sqrt(np.mean(error**2))),
        rmse_percent=float(100 * np.sqrt(np.mean((error / rows.loss) ** 2))),
        r_squared=_r_squared(error, rows.loss - _block_means(rows.loss, blocks)),
        condition_number=solved.condition_number,
        rank=solved.rank,
        unidentified=solved.unidentified,
        starts_at_optimum=solved.starts_at_optimum,
        n_starts=solved.n_starts,
        newton_decrement=solved.decrement,
        is_exact=solved.is_exact,
        reference=reference,
        domain={s: (float(v.min()), float(v.max())) for s, v in rows.values.items()},
        columns={s: columns.get(s, s) for s in rows.values},
        dropped=dropped,
        loss=loss,
        stage=stage,
        compensation=compensation,
        warnings=(*rows.notes, *left_out, *solved.warnings),
        rows=rows,
        residuals=np.log(rows.loss / solved.fitted) if residual == "log" else -error,
        blocks=blocks,
    )


def _require_enough(rows: Rows, law: Law, constraints: Constraints, name: str) -> int:
    """The number of free coefficients; raises ``UserError`` for fewer rows."""
    n_free = len((law if isinstance(law, LocalLaw) else reduce_law(law, constraints).law).coefficients)
    if rows.size < n_free:
        raise UserError(f"{rows.size} rows cannot determine the {n_free} coefficients of law {name!r}")
    return n_free


def _r_squared(error: Array, centred: Array) -> float:
    """Share of the variance within blocks that is explained; NaN where there is none."""
    total = float(centred @ centred)
    return 1.0 - float(error @ error) / total if total > 0 else float("nan")


def _without_constants(
    rows: Rows, law: Law, constraints: Constraints, columns: Mapping[str, str]
) -> tuple[Law, tuple[str, ...], list[str]]:
    """The law without the axes that every row has at one level, the coefficients that go with them, and warnings."""
    constant = [s for s in law.symbols if _has_one_level(rows.values[s])]
    law, dropped = without_axes(law, constant, keep=constraints.names)
    warnings = []
    for symbol in constant:
        if symbol not in law.symbols:
            warnings.append(
                f"every row has the same {columns.get(symbol, symbol)}, {rows.values[symbol][0]:g}: it is not in "
                "the law"
                if columns.get(symbol, symbol)[:1].isalpha()
                else f"every row has the same {symbol}, {columns.get(symbol, symbol)}: it is not in the law"
            )
    # Sums of positive powers are fitted in logarithms; what may be negative is fitted as it is written.
    if (
        isinstance(law, PowerLaw)
        and law.root is not None
        and (needs_signs(law, constraints) or any((rows.values[s] <= 0).any() for s in law.symbols))
    ):
        law = as_written(law, None if dropped else law.root)
    return law, dropped, warnings


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
    is_exact: bool = True


def fit_anew(rows: Rows, fit: FitResult) -> FitResult:
    """Fit the law of ``fit`` to other ``rows`` as it was fitted itself: objective, residual, pins, ties and bounds."""
    return fit_rows(
        rows,
        fit.law,
        columns={**COLUMNS, **fit.columns},
        objective=fit.objective_name,
        delta=fit.delta if np.isfinite(fit.delta) else None,
        residual=fit.residual,
        constraints=fit.constraints,
        above=fit.above,
    )


def _threshold(objective: Objective, delta: float | None) -> float:
    if objective == "least_squares":
        return float("inf")
    if objective == "least_absolute":
        return 1e-6
    if delta is not None and not delta > 0:
        raise UserError(f"Huber's delta must be positive, got {delta:g}")
    return HUBER_DELTA if delta is None else delta


def _has_one_level(values: Array) -> bool:
    if (values > 0).all():
        return bool(np.ptp(np.log(values)) < _ONE_LEVEL)
    return bool(np.ptp(values) <= _ONE_LEVEL * np.abs(values).max())


def _middle(values: Array) -> float:
    """Geometric mean; arithmetic where some values have no logarithm, as columns of an expression may."""
    return float(np.exp(np.log(values).mean()) if (values > 0).all() else values.mean())


def row_weights(rows: Rows, residual: Residual) -> Array | None:
    """Weights of the rows' residuals, mean 1: as given, over the variance of the residual where errors are given.

    The standard error of ln L is that of L over L.
    """
    if rows.weight is None and rows.error is None:
        return None
    weights = np.ones(rows.size) if rows.weight is None else rows.weight
    if rows.error is not None:
        weights = weights * ((rows.loss if residual == "log" else 1.0) / rows.error) ** 2
    return np.asarray(weights / weights.mean())


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is posed to the engine, rows aside."""

    reduced: Reduced
    residual: Residual
    delta: float
    weights: Array | None
    above: float

    def on(self, values: Mapping[str, Array], hold: str | None = None) -> engine.Problem:
        """The problem on the rows of ``values``."""
        law, bounds = self.reduced.law, self.reduced.bounds
        problem: engine.Problem
        if isinstance(law, ExpressionLaw):
            problem = expression_problem(law, values, residual=self.residual, delta=self.delta, bounds=bounds)
        else:
            problem = engine.make_problem(
                law, values, residual=self.residual, delta=self.delta, bounds=bounds, hold=hold
            )
        return replace(problem, row_weights=self.weights, above=self.above)


@dataclass(frozen=True, slots=True)
class _Task:
    """A law that is not linear, and how it is to be fitted."""

    rows: Rows
    law: PowerLaw | ExpressionLaw
    constraints: Constraints
    residual: Residual
    objective: Objective
    delta: float
    weights: Array | None
    above: float

    @property
    def reduced(self) -> Reduced:
        return reduce_law(self.law, self.constraints)

    @property
    def continuation(self) -> Sequence[float]:
        """Huber's thresholds in turn: cold starts at a tiny one land in wrong basins, the last optimum does not."""
        return (
            [HUBER_DELTA * 10.0**-k for k in range(4)] if self.objective == "least_absolute" else [self.delta]
        )


def _solve_by_kind(task: "_Task", reference: Mapping[str, float]) -> "tuple[Law, _Solved, Array]":
    """The law as solved, its solution, and the intercepts of seed blocks [rows, blocks], which only local laws have."""
    rows, law = task.rows, task.law
    if not 0 < task.above <= 1:
        raise UserError(f"rows above the law weigh more than 0 and at most 1, not {task.above:g}")
    if isinstance(law, LocalLaw):
        if (task.residual, task.objective) != ("raw", "least_squares"):
            raise UserError(
                f"law {law.name!r} is linear in the loss: fit it by least squares on raw residuals"
            )
        if task.above != 1:
            raise UserError(f"law {law.name!r} is linear: rows above and below it weigh the same")
        features = local_features(law, rows.values, reference)
        blocks = _block_intercepts(rows, features)
        solved = _solve_local(rows, law, features, blocks, task.weights)
    else:
        blocks = np.zeros((rows.size, 0))
        law, solved = _solve_signed(task)
    endless = [n for n, c in zip(law.coefficients, solved.coefficients, strict=True) if not np.isfinite(c)]
    if endless:
        raise UserError(
            f"law {law.name!r} runs away on these rows: its optimum has {', '.join(endless)} beyond any number; bound "
            "an exponent or pin a coefficient, or use another law"
        )
    return law, solved, blocks


def _solve_signed(task: _Task) -> tuple[PowerLaw | ExpressionLaw, _Solved]:
    """The fit, and the law as fitted: one that its user wrote is no power law where a scale is negative."""
    law = task.law
    if not isinstance(law, PowerLaw) or law.root is None or not _may_be_negative(law, task.constraints):
        return law, _solve(task)
    real = (
        as_written(law) if set(law.symbols) < set(tree.symbol_names(law.root)) else as_written(law, law.root)
    )
    try:
        signed = _solve(replace(task, law=real))
    except UserError:
        return law, _solve(task)
    values = dict(zip(real.coefficients, signed.coefficients.tolist(), strict=True))
    if all(values[name] > 0 for name in law.scales):
        return law, _solve(task, np.array([[values[name] for name in law.coefficients]]))
    positive = _solve(task)
    determined = signed.is_exact and not signed.unidentified and np.isfinite(signed.coefficients).all()
    better = signed.objective < positive.objective * (1 - _SAME_OPTIMUM)
    return (real, signed) if better and (determined or not positive.is_exact) else (law, positive)


def _may_be_negative(law: PowerLaw, constraints: Constraints) -> bool:
    bounds = constraints.bounds
    return any(
        name not in constraints.pins and bounds.get(name, (-np.inf, np.inf))[0] < 0 for name in law.scales
    )


def _solve(task: _Task, extra: Array | None = None) -> _Solved:
    """The least objective; ``extra`` [S, P] are coefficients of the whole law to start from beside the usual ones."""
    law, reduced = task.law, task.reduced
    known = np.zeros((0, len(reduced.law.coefficients)))
    if extra is not None:
        known = reduced.restrict(extra, law)
    if reduced.bounds:
        known = np.concatenate([known, _unbounded_optima(task)])
    problem, solution = _search(task, reduced, known)
    best = int(solution.objective.argmin()) if len(solution.objective) else -1
    least = float(solution.objective[best]) if best >= 0 else np.inf
    if not np.isfinite(least):
        raise UserError(
            f"no starting values give law {law.name!r} a finite positive loss on every row: "
            "pin or bound its coefficients"
        )
    theta = solution.theta[best]
    surface = problem.surface(theta[None])
    prediction = surface.prediction[0]
    names = tuple(reduced.tied(name) for name in reduced.law.coefficients)
    design = surface.jacobian[0].T @ problem.centring
    gap = solution.objective - least
    reached = gap <= _SAME_OPTIMUM * max(least, 1e-12)
    free = np.ones(len(names), dtype=bool)
    if isinstance(problem, ExpressionProblem):
        free = _moves_freely(design, solution, reached)
    rank, condition, loose, warnings = _identify(design, names, weak=1e4, free=free)
    absent = tuple(name for leader in _vanished(problem, theta) for name in reduced.tied(leader))
    warnings = (*warnings, *_at_bounds(problem, theta, names))
    if absent:
        rank -= sum(name in absent and name not in loose for name in reduced.law.coefficients)
        loose = tuple(name for name in law.coefficients if name in loose or name in absent)
        warnings = (
            *warnings,
            f"{', '.join(absent)}: the rows want this part of the law to vanish or be negative",
        )
    drawn = len(gap) if solution.independent is None else solution.independent
    is_exact = bool(solution.decrement[best] <= _FLAT * max(least, 1e-12))
    if not is_exact:
        warnings = (
            *warnings,
            "the optimiser stopped before the objective was flat: the optimum is not exact",
        )
    return _Solved(
        coefficients=reduced.expand(problem.coefficients(theta), law),
        fitted=np.exp(prediction) if task.residual == "log" else prediction,
        objective=least,
        condition_number=condition,
        rank=rank,
        unidentified=loose,
        warnings=warnings,
        starts_at_optimum=float(np.mean(reached[:drawn])),
        n_starts=drawn,
        decrement=float(solution.decrement[best]),
        is_exact=is_exact,
    )


def _search(task: _Task, reduced: Reduced, known: Array) -> tuple[engine.Problem, engine.Solution]:
    """Where the law's own starts lead, and after them those ``known`` [S, free coefficients]."""
    loss = task.rows.loss
    posed = _Problem(reduced, task.residual, task.continuation[0], task.weights, task.above)
    problem = posed.on(task.rows.values)
    if isinstance(problem, ExpressionProblem):
        solution = generic_search(problem, loss, extra=known)
    else:
        solution = engine.search(problem, loss)
        if len(known):
            more = engine.minimise(problem, problem.theta(known), loss)
            solution = engine.Solution(
                theta=np.concatenate([solution.theta, more.theta]),
                objective=np.concatenate([solution.objective, more.objective]),
                decrement=np.concatenate([solution.decrement, more.decrement]),
                independent=len(solution.theta),
            )
    for smaller in task.continuation[1:]:
        problem = problem.with_delta(smaller)
        again = engine.minimise(problem, solution.theta, loss)
        solution = replace(again, independent=solution.independent, before=solution.before)
    return problem, solution


def _unbounded_optima(task: _Task) -> Array:
    """The best optima without bounds, moved inside them, [S, free coefficients]: a bound must not make a fit worse."""
    reduced = task.reduced
    problem, solution = _search(
        task, replace(reduced, bounds={}), np.zeros((0, len(reduced.law.coefficients)))
    )
    order = np.argsort(solution.objective, kind="stable")
    order = order[np.isfinite(solution.objective[order])]
    distinct = [
        k for i, k in enumerate(order) if not i or solution.objective[k] > solution.objective[order[i - 1]]
    ]
    found = problem.coefficients(solution.theta[distinct[:_UNBOUNDED]])
    ends = np.array([reduced.bounds.get(name, (-np.inf, np.inf)) for name in reduced.law.coefficients])
    return np.asarray(np.clip(found, ends[:, 0], ends[:, 1]))


def _moves_freely(design: Array, solution: engine.Solution, reached: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Coefficients that rows leave open in truth, not only to the curvature's precision [P].

    An optimum in a narrow valley looks singular. Where the Jacobian is not singular to rounding, a coefficient is open
    only if independent starts that reached the optimum ended at different values of it.
    """
    length = np.linalg.norm(design, axis=0)
    _, singular, axes = np.linalg.svd(design / np.where(length > 0, length, 1.0), full_matrices=False)
    null = np.abs(axes[singular <= _ROUNDING * singular[0]])
    free: NDArray[np.bool_] = null.max(axis=0, initial=0.0) > _SHARE
    if solution.before is not None and reached[: len(solution.before)].sum() > 1:
        ends = solution.before[reached[: len(solution.before)]]
        spread = np.abs(np.ptp(ends, axis=0))
        free |= spread > _WIDE * np.maximum(np.abs(ends).max(axis=0), 1e-300)
    return free


def _vanished(problem: engine.Problem, theta: Array) -> tuple[str, ...]:
    """Coefficients that stand only in terms of a power law that are nowhere a visible part of the loss."""
    if not isinstance(problem, engine.PowerProblem):
        return ()
    shares = engine.term_shares(problem, theta).max(axis=1)
    there = {t for t, share in enumerate(shares) if share > _VANISHED}
    names = problem.law.coefficients
    return tuple(
        n for n, terms in zip(names, problem.pattern, strict=True) if terms and not there & set(terms)
    )


def _at_bounds(problem: engine.Problem, theta: Array, names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """A sentence for each bounded coefficient that would go further if it could."""
    if problem.box is None:
        return ()
    low, high = problem.box
    resting = (theta <= low) | (theta >= high)
    return tuple(
        f"{' = '.join(n)} rests at its bound" for n, rests in zip(names, resting, strict=True) if rests
    )


def refit(fit: FitResult, weights: Array) -> Array:
    """Coefficients [draws, P] of the fit's law and constraints with row weights [draws, rows].

    All draws start at the fit's optimum and advance as one batch; the objective is Σ_i w_i h_δ(r_i). For laws that
    are not linear.
    """
    law, reduced = _whole(fit)
    problem = _posed(fit, reduced).on(fit.rows.values)
    start = problem.theta(reduced.restrict(fit.vector, law))
    solution = engine.minimise(
        problem, np.repeat(start[None], len(weights), axis=0), fit.rows.loss, weights=weights
    )
    return reduced.expand(problem.coefficients(solution.theta), law)


def profile(fit: FitResult, name: str, values: Array) -> Array:
    """Least objective [values] with the coefficient ``name`` held at each of ``values``, all others fitted anew.

    Raises ``UserError`` for a coefficient the law lacks or that is pinned, and for scales that are not positive.
    """
    law, reduced = _whole(fit)
    values = np.asarray(values, dtype=np.float64)
    if name not in reduced.leaders:
        raise UserError(f"{name!r} is not fitted in law {fit.law.name!r}{nearest(name, reduced.leaders)}")
    held = reduced.leaders[name]
    if isinstance(reduced.law, PowerLaw) and held in reduced.law.scales and (values <= 0).any():
        raise UserError(f"{name} is a scale of a power law: it can be held at positive values only")
    problem = _posed(fit, reduced).on(fit.rows.values, hold=held)
    optimum = reduced.restrict(fit.vector, law)
    position = reduced.law.coefficients.index(held)
    moved = np.repeat(optimum[None], len(values), axis=0)
    moved[:, position] = values
    level = problem.theta(moved)[:, position]
    low, high = (np.repeat(end[None], len(values), axis=0) for end in problem.box or _no_box(len(optimum)))
    low[:, position] = high[:, position] = level
    start = np.repeat(problem.theta(optimum)[None], len(values), axis=0)
    solution = engine.minimise(problem, start, fit.rows.loss, box=(low, high))
    theta, objective = solution.theta, solution.objective
    # Far from the optimum a neighbour's solution is the better start.
    offset = level - start[0, position]
    outwards = np.argsort(np.abs(offset), kind="stable")
    for side in (outwards[offset[outwards] <= 0], outwards[offset[outwards] > 0]):
        for nearer, k in itertools.pairwise(side):
            again = engine.minimise(problem, theta[[nearer]], fit.rows.loss, box=(low[[k]], high[[k]]))
            if again.objective[0] < objective[k]:
                theta[k], objective[k] = again.theta[0], again.objective[0]
    return objective


def slopes(fit: FitResult, name: str) -> tuple[int, Array]:
    """Which free coefficient ``name`` is, and the fitted values' derivatives in all their coordinates [rows, free].

    Its coordinate is the coefficient itself or its logarithm. For laws that are not linear.
    """
    law, reduced = _whole(fit)
    held = reduced.leaders[name]
    problem = _posed(fit, reduced).on(fit.rows.values, hold=held)
    theta = problem.theta(reduced.restrict(fit.vector, law))
    return reduced.law.coefficients.index(held), problem.surface(theta[None]).jacobian[0].T


def _no_box(n_coefficients: int) -> tuple[Array, Array]:
    return np.full(n_coefficients, -np.inf), np.full(n_coefficients, np.inf)


def _posed(fit: FitResult, reduced: Reduced) -> _Problem:
    return _Problem(reduced, fit.residual, fit.delta, fit.weights, fit.above)


def _whole(fit: FitResult) -> tuple[PowerLaw | ExpressionLaw, Reduced]:
    if isinstance(fit.law, LocalLaw):
        raise ValueError(f"law {fit.law.name!r} is linear: it is solved, not refitted")
    return fit.law, reduce_law(fit.law, fit.constraints)


def _solve_local(rows: Rows, law: LocalLaw, features: Array, blocks: Array, weights: Array | None) -> _Solved:
    design = np.hstack([features, blocks])
    root = np.ones(rows.size) if weights is None else np.sqrt(weights)
    solution = np.linalg.lstsq(design * root[:, None], rows.loss * root, rcond=_SINGULAR)[0].astype(
        np.float64
    )
    fitted = design @ solution
    within = features
    if blocks.shape[1]:
        within = features - blocks @ np.linalg.lstsq(blocks, features, rcond=_SINGULAR)[0]
    rank, condition, loose, warnings = _identify(within, [(name,) for name in law.coefficients], weak=30.0)
    between = rank + blocks.shape[1] - ("d" in law.coefficients and "d" not in loose)
    return _Solved(
        coefficients=solution[: len(law.coefficients)],
        fitted=fitted,
        objective=0.5 * float((root * (rows.loss - fitted)) @ (root * (rows.loss - fitted))),
        condition_number=condition,
        rank=rank,
        unidentified=loose,
        warnings=(*warnings, *_lack_of_fit_warning(rows, rows.loss - fitted, between)),
    )


def lack_of_fit(fit: FitResult) -> tuple[float, float]:
    """F of how far cells lie from a local law against how far runs of a cell lie from each other, and its p.

    F is 0 and p is 1 where runs or cells are too few to tell.
    """
    within = "d" in fit.coefficients and "d" not in fit.unidentified
    return _lack_of_fit(fit.rows, fit.residuals, fit.rank + fit.blocks.shape[1] - within)


def _lack_of_fit(rows: Rows, residuals: Array, between: int) -> tuple[float, float]:
    """The same; ``between`` counts the coefficients and blocks that runs, not records of a run, determine."""
    noise, freedom = run_noise(rows)
    spare = len(np.unique(rows.run)) - between - freedom
    if freedom < 1 or spare < 1 or noise <= 0:
        return 0.0, 1.0
    from umscale.laws.special import fdtrc

    left = len(np.unique(rows.run)) - between
    f = max((run_variance(rows, residuals, left) * left - noise * freedom) / spare / noise, 0.0)
    return f, float(fdtrc(spare, freedom, f))


def _lack_of_fit_warning(rows: Rows, residuals: Array, between: int) -> tuple[str, ...]:
    f, p = _lack_of_fit(rows, residuals, between)
    if p > 0.01:
        return ()
    return (
        f"the law misses cells by more than their runs differ (F = {f:.1f}): its form is too simple for these rows",
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


def _identify(
    design: Array, names: Sequence[tuple[str, ...]], *, weak: float, free: NDArray[np.bool_] | None = None
) -> tuple[int, float, tuple[str, ...], tuple[str, ...]]:
    """Rank, condition number, undetermined coefficients and the sentences that say so.

    ``names`` are those that share each column of the design; a condition number above ``weak`` is worth a sentence.
    A direction is undetermined only if one of its columns is ``free``.
    """
    length = np.linalg.norm(design, axis=0)
    _, singular, axes = np.linalg.svd(design / np.where(length > 0, length, 1.0), full_matrices=False)
    kept = singular > _SINGULAR * singular[0]
    if free is not None:
        kept |= ~((np.abs(axes) > _SHARE) & free).any(axis=1)
    rank = int(kept.sum())
    condition = float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")
    null = np.abs(axes[~kept])
    loose = [n for n, share in zip(names, null.max(axis=0, initial=0.0), strict=True) if share > _SHARE]
    sentences = []
    for direction in null:
        tangled = [" = ".join(n) for n, share in zip(names, direction, strict=True) if share > _SHARE]
        verb = "is not determined" if len(tangled) == 1 else "cannot be separated"
        sentences.append(f"{', '.join(tangled)} {verb}: on these rows their effects vary together")
    if not sentences and condition > weak:
        direction = np.abs(axes[-1])
        tangled = [" = ".join(n) for n, share in zip(names, direction, strict=True) if share > 0.3]
        sentences.append(f"{', '.join(tangled)} are hardly separated (condition number {condition:.3g})")
    return rank, condition, tuple(name for group in loose for name in group), tuple(sentences)
